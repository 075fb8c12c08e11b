// RMSNorm of one row after another (Zhang & Sennrich 2019), with the residual added first if given, or
// of rows that are looked up in a table; and rows added or gated by others.

#pragma once

#include "activation.h"
#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

INLINE float inverse_rms(const float* row, int64_t size, float eps) {
    Vec16 squares[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 64 <= size; i += 64)
        for (int j = 0; j < 4; ++j) {
            const Vec16 x = load(row + i + 16 * j);
            squares[j] = fma(x, x, squares[j]);
        }
    for (int j = 0; i < size; i += 16, ++j) {
        const Vec16 x = load_some(row + i, size - i);
        squares[j] = fma(x, x, squares[j]);
    }
    const float total = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    return 1.0f / __builtin_sqrtf(total / float(size) + eps);
}

// Without weights the row is rounded and no more.
template <typename Element>
INLINE void normalise(const float* row, const float* weights, int64_t size, float eps, Element* out) {
    if (weights == nullptr) {
        for (int64_t i = 0; i < size; i += 16)
            store_some(out + i, load_some(row + i, size - i), size - i);
        return;
    }
    const Vec16 scale = broadcast(inverse_rms(row, size, eps));
    for (int64_t i = 0; i < size; i += 16) {
        const Vec16 weight = load_some(weights + i, size - i);
        store_some(out + i, load_some(row + i, size - i) * scale * weight, size - i);
    }
}

template <typename Element>
void norm_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& a = *static_cast<const NormArguments*>(untyped);
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const Element* x = static_cast<const Element*>(a.x) + t * a.size;
        Element* out = static_cast<Element*>(a.out) + t * a.size;
        float* row = a.residual != nullptr
                         ? a.residual + t * a.size
                         : reinterpret_cast<float*>(scratch.reserve(a.size * sizeof(float)));
        const Vec16 scale = broadcast(a.scale);
        for (int64_t i = 0; i < a.size; i += 16) {
            Vec16 wide = load_some(x + i, a.size - i);
            if (a.residual != nullptr) wide = (wide + load_some(row + i, a.size - i)) * scale;
            store_some(row + i, wide, a.size - i);
        }
        normalise(row, a.weight, a.size, a.eps, out);
    }
}

// Looks tokens up and normalises them for the first layer.
template <typename Element>
void embed_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const EmbedArguments*>(untyped);
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const Element* found = static_cast<const Element*>(a.table) + a.token_ids[t] * a.size;
        float* row = a.residual + t * a.size;
        const Vec16 scale = broadcast(a.table_scale);
        for (int64_t i = 0; i < a.size; i += 16)
            store_some(row + i, load_some(found + i, a.size - i) * scale, a.size - i);
        normalise(row, a.weight, a.size, a.eps, static_cast<Element*>(a.out) + t * a.size);
    }
}

template <typename Element, typename Other>
INLINE void combine_row(const CombineArguments& a, const Element* x, const Other* y, Element* out) {
    for (int64_t i = 0; i < a.size; i += 16) {
        const int64_t count = a.size - i;
        const Vec16 first = load_some(x + i, count), second = load_some(y + i, count);
        const Vec16 both = a.gate == Gate::NONE ? first + second : gated(a.gate, Clamp{}, first, second);
        store_some(out + i, both, count);
    }
}

template <typename Element>
void combine_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const CombineArguments*>(untyped);
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const Element* x = static_cast<const Element*>(a.x) + t * a.size;
        Element* out = static_cast<Element*>(a.out) + t * a.size;
        if (a.wide)
            combine_row(a, x, static_cast<const float*>(a.y) + t * a.y_stride, out);
        else
            combine_row(a, x, static_cast<const Element*>(a.y) + t * a.y_stride, out);
    }
}

}  // namespace
}  // namespace loire
