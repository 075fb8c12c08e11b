// Mamba-2 (Dao and Gu 2024, "Transformers are SSMs"), token after token.
//
// Columns of a head's state S [state_dim, head_dim] know nothing of each other (state_columns.h):
//
//     S = decay * S + B (step * x);  out = C S + skip * x
//
// The sum over the state's rows goes in order while they are written, and nothing but the token itself and
// the state before it goes into it: in whatever pieces a sequence is computed, the bits are the same.

#pragma once

#include "activation.h"
#include "convolution.h"
#include "norm.h"
#include "recurrent_operations.h"
#include "state_columns.h"
#include "vec16.h"

namespace loire {
namespace {

template <typename Element>
INLINE auto mamba2_given(const Mamba2Arguments& a) {
    return [x = static_cast<const Element*>(a.projected) + a.size(), stride = a.stride()](
               int64_t token, int64_t c, int64_t count) {
        return load_some(x + token * stride + c, count);
    };
}

// Convolves, and works out the steps and how much of a state they leave.
template <typename Element>
void mamba2_inputs_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const Mamba2Arguments*>(untyped);
    const auto given = mamba2_given<Element>(a);
    const int64_t channels = a.channels();
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const int64_t row = a.states.row_of(t), index = t - a.states.query_starts[row];
        const float* before = a.states.array(row, 0);
        float* mixed = a.mixed + t * channels;
        for (int64_t c = 0; c < channels; c += 16) {
            const int64_t count = channels - c;
            Vec16 x = convolved(given, a.filters, before, t, index, a.width, channels, c);
            if (a.filter_bias != nullptr) x = x + load_some(a.filter_bias + c, count);
            store_some(mixed + c, x * sigmoid(x), count);
        }
        float *decays = a.steps + t * 2 * a.heads, *steps = decays + a.heads;
        const Element* asked =
            static_cast<const Element*>(a.projected) + (t + 1) * a.stride() - a.heads;
        for (int64_t first = 0; first < a.heads; first += 16) {
            const int64_t count = a.heads - first;
            float lanes[16], exponents[16] = {};
            store(lanes, load_some(asked + first, count));
            for (int64_t i = 0; i < 16 && i < count; ++i) {
                const float step = softplus(lanes[i] + a.step_bias[first + i]);
                lanes[i] = step < a.least_step ? a.least_step : step > a.most_step ? a.most_step : step;
                exponents[i] = -a.rate[first + i] * lanes[i];
            }
            store_some(decays + first, exponential(load(exponents)), count);
            store_some(steps + first, load(lanes), count);
        }
    }
}

// One head's tokens of a row.
struct Mamba2Steps {
    const float *values, *inputs, *outputs;  // x, B and C of the first token; the next ones channels apart
    const float *decays, *steps;             // the same, 2 * heads apart
    float* out;                              // the same, size apart
    int64_t tokens, channels, heads, size, state_dim;
    float skip;
};

// Sixteen times VECTORS columns of the state, whose rows are stride apart, of which so many are there.
template <int VECTORS>
void mamba2_columns(const Mamba2Steps& s, float* state, int64_t stride, int64_t first, int64_t columns) {
    const Vec16 skip = broadcast(s.skip);
    for (int64_t t = 0; t < s.tokens; ++t) {
        const Vec16 decay = broadcast(s.decays[t * 2 * s.heads]);
        const Vec16 step = broadcast(s.steps[t * 2 * s.heads]);
        const float *in = s.inputs + t * s.channels, *seen = s.outputs + t * s.channels;
        const float* values = s.values + t * s.channels + first;
        Vec16 x[VECTORS], total[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            x[v] = load_some(values + 16 * v, columns - 16 * v) * step;
            total[v] = zero();
        }
        for (int64_t i = 0; i < s.state_dim; ++i) {
            const Vec16 written = broadcast(in[i]), read = broadcast(seen[i]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) {
                float* at = state + i * stride + 16 * v;
                const Vec16 now = fma(written, x[v], decay * load(at));
                store(at, now);
                total[v] = fma(read, now, total[v]);
            }
        }
        float* out = s.out + t * s.size + first;
        for (int v = 0; v < VECTORS; ++v) {
            const int64_t count = columns - 16 * v;
            store_some(out + 16 * v, fma(skip, load_some(values + 16 * v, count), total[v]), count);
        }
    }
}

template <typename Element>
void mamba2_scan_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& a = *static_cast<const Mamba2Arguments*>(untyped);
    const int64_t row = piece / a.heads, head = piece % a.heads;
    const int64_t first = a.states.query_starts[row], end = a.states.query_starts[row + 1];
    const int64_t channels = a.channels(), dim = a.head_dim;
    if (head == 0)  // all pieces of mamba2_inputs have read them
        keep_inputs(mamba2_given<Element>(a), a.states.array(row, 0), first, end - first, a.width,
                    channels);
    const float* mixed = a.mixed + first * channels;
    const float* inputs = mixed + a.size() + head / (a.heads / a.groups) * a.state_dim;
    const float* decays = a.steps + first * 2 * a.heads + head;
    const Mamba2Steps steps{mixed + head * dim,
                            inputs,
                            inputs + a.group_states(),
                            decays,
                            decays + a.heads,
                            a.scanned + first * a.size() + head * dim,
                            end - first,
                            channels,
                            a.heads,
                            a.size(),
                            a.state_dim,
                            a.skip[head]};
    float* copy = reinterpret_cast<float*>(
        scratch.reserve(size_t(columns_to_copy(a.state_dim)) * sizeof(float)));
    by_columns(a.states.array(row, 1 + head), a.state_dim, dim, steps.tokens, copy,
               [&](auto vectors, float* block, int64_t stride, int64_t c) {
                   mamba2_columns<decltype(vectors)::value>(steps, block, stride, c, dim - c);
               });
}

// Gates what was scanned, and normalises each group by itself.
template <typename Element>
void mamba2_outputs_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const Mamba2Arguments*>(untyped);
    const int64_t size = a.size() / a.groups;
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const Element* gates = static_cast<const Element*>(a.projected) + t * a.stride();
        for (int64_t first = 0; first < a.size(); first += size) {
            float* row = a.scanned + t * a.size() + first;
            for (int64_t i = 0; i < size; i += 16) {
                const Vec16 z = load_some(gates + first + i, size - i);
                store_some(row + i, load_some(row + i, size - i) * (z * sigmoid(z)), size - i);
            }
            normalise(row, a.norm + first, size, a.eps,
                      static_cast<Element*>(a.out) + t * a.size() + first);
        }
    }
}

}  // namespace
}  // namespace loire
