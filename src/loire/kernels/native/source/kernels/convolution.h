// Convolutions along the sequence, by channel, of few tokens (LFM2, and before delta rules). A token's
// sum is taken from the oldest token to the newest, whatever it is computed with.

#pragma once

#include "recurrent_operations.h"
#include "vec16.h"

namespace loire {
namespace {

// The inputs of one token's convolution: its own row's tokens, those of earlier steps from the state.
// given(token, channel, count) has sixteen channels of a token of the flat batch.
template <typename Given>
INLINE Vec16 convolved(const Given& given, const float* filters, const float* before, int64_t token,
                       int64_t index, int64_t width, int64_t channels, int64_t c) {
    const int64_t count = channels - c;
    Vec16 total = zero();
    for (int64_t tap = 0; tap < width; ++tap) {
        const int64_t back = width - 1 - tap;
        const Vec16 x = back <= index ? given(token - back, c, count)
                                      : load_some(before + (index + tap) * channels + c, count);
        total = fma(x, load_some(filters + tap * channels + c, count), total);
    }
    return total;
}

// Leaves the last width - 1 inputs of a row in its state, [width - 1, channels].
template <typename Given>
INLINE void keep_inputs(const Given& given, float* state, int64_t first, int64_t tokens, int64_t width,
                        int64_t channels) {
    for (int64_t j = 0; j < width - 1; ++j) {
        const int64_t own = tokens - (width - 1) + j;
        for (int64_t c = 0; c < channels; c += 16) {
            const int64_t count = channels - c;
            // (What is taken from the state itself lies behind what is overwritten.)
            const Vec16 x = own >= 0 ? given(first + own, c, count)
                                     : load_some(state + (j + tokens) * channels + c, count);
            store_some(state + j * channels + c, x, count);
        }
    }
}

template <typename Element>
INLINE auto gated_inputs(const ShortConvolutionArguments& a) {
    return [&a](int64_t token, int64_t c, int64_t count) {
        const Element* row = static_cast<const Element*>(a.gated) + token * 3 * a.size + c;
        return load_some(row, count) * load_some(row + 2 * a.size, count);
    };
}

template <typename Element>
void convolution_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const ShortConvolutionArguments*>(untyped);
    const auto given = gated_inputs<Element>(a);
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const int64_t row = a.states.row_of(t), index = t - a.states.query_starts[row];
        const float* before = a.states.array(row, 0);
        const Element* second = static_cast<const Element*>(a.gated) + (t * 3 + 1) * a.size;
        Element* out = static_cast<Element*>(a.out) + t * a.size;
        for (int64_t c = 0; c < a.size; c += 16) {
            const int64_t count = a.size - c;
            Vec16 total = convolved(given, a.filters, before, t, index, a.width, a.size, c);
            if (a.bias != nullptr) total = total + load_some(a.bias + c, count);
            store_some(out + c, load_some(second + c, count) * total, count);
        }
    }
}

template <typename Element>
void kept_inputs_piece(const void* untyped, int64_t row, Scratch&) {
    const auto& a = *static_cast<const ShortConvolutionArguments*>(untyped);
    const int64_t first = a.states.query_starts[row], end = a.states.query_starts[row + 1];
    keep_inputs(gated_inputs<Element>(a), a.states.array(row, 0), first, end - first, a.width, a.size);
}

}  // namespace
}  // namespace loire
