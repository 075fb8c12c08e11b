// The gated delta rule (Yang et al. 2024, "Gated Delta Networks"), token after token.
//
// Columns of a head's state S [key_dim, value_dim] know nothing of each other, so a block of them stays
// in the L1 cache while all tokens of a row go over it, once per token:
//
//     delta = beta * (v - decay * (k S));  out = decay * (q S) + (q k) * delta;  S = decay * S + k delta
//
// where k S and q S of the next token are summed while S is written. A sum goes over the key's elements
// in order, and nothing but the token itself and the state before it goes into it: in whatever pieces a
// sequence is computed, the bits are the same. (The chunks of matrix products that accelerators need
// would have another order at every end of a piece.)

#pragma once

#include "activation.h"
#include "convolution.h"
#include "norm.h"
#include "recurrent_operations.h"
#include "state_columns.h"
#include "vec16.h"

namespace loire {
namespace {

constexpr float LENGTH_EPS = 1e-6f;

INLINE float dot_product(const float* a, const float* b, int64_t size) {
    Vec16 sums[2] = {zero(), zero()};
    for (int64_t i = 0, j = 0; i < size; i += 16, j ^= 1)
        sums[j] = fma(load_some(a + i, size - i), load_some(b + i, size - i), sums[j]);
    return sum(sums[0] + sums[1]);
}

INLINE void to_length(float* x, int64_t size, float length) {
    const float scale = length / __builtin_sqrtf(dot_product(x, x, size) + LENGTH_EPS);
    for (int64_t i = 0; i < size; i += 16)
        store_some(x + i, load_some(x + i, size - i) * broadcast(scale), size - i);
}

template <typename Element>
INLINE auto delta_net_inputs(const DeltaNetArguments& a) {
    return [x = static_cast<const Element*>(a.qkv_gate), stride = a.stride()](
               int64_t token, int64_t c, int64_t count) {
        return load_some(x + token * stride + c, count);
    };
}

// Convolves, normalises queries and keys, and works out the gates.
template <typename Element>
void delta_inputs_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const DeltaNetArguments*>(untyped);
    const auto given = delta_net_inputs<Element>(a);
    const int64_t channels = a.channels(), dim = a.key_dim;
    const float query_length = 1.0f / __builtin_sqrtf(float(dim));
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const int64_t row = a.states.row_of(t), index = t - a.states.query_starts[row];
        const float* before = a.states.array(row, 0);
        float* mixed = a.mixed + t * channels;
        for (int64_t c = 0; c < channels; c += 16) {
            const Vec16 x = convolved(given, a.filters, before, t, index, a.width, channels, c);
            store_some(mixed + c, x * sigmoid(x), channels - c);
        }
        float* gates = a.gates + t * a.gates_size();
        for (int64_t head = 0; head < a.key_heads; ++head) {
            float *query = mixed + head * dim, *key = query + a.key_size();
            to_length(query, dim, query_length);
            to_length(key, dim, 1.0f);
            gates[2 * a.value_heads + head] = dot_product(query, key, dim);
        }
        const Element* beta = static_cast<const Element*>(a.beta_alpha) + t * 2 * a.value_heads;
        for (int64_t first = 0; first < a.value_heads; first += 16) {
            const int64_t count = a.value_heads - first;
            float alphas[16];
            store(alphas, load_some(beta + a.value_heads + first, count));
            for (int64_t i = 0; i < 16 && i < count; ++i)
                alphas[i] = -a.rate[first + i] * softplus(alphas[i] + a.decay_bias[first + i]);
            store_some(gates + first, exponential(load(alphas)), count);
            store_some(gates + a.value_heads + first, sigmoid(load_some(beta + first, count)), count);
        }
    }
}

// One head's tokens of a row.
struct DeltaSteps {
    const float *queries, *keys, *values;  // of the first token; the next ones channels apart
    const float *decays, *betas, *products;  // the same, gates_size apart
    int64_t tokens, channels, gates_size, key_dim;
};

// Sixteen times VECTORS columns of the state, whose rows are stride apart, of which so many are there.
template <int VECTORS>
void delta_columns(const DeltaSteps& s, float* state, int64_t stride, const float* values, int64_t columns,
                   float* out, int64_t out_stride) {
    Vec16 read[VECTORS], seen[VECTORS];
    for (int v = 0; v < VECTORS; ++v) read[v] = seen[v] = zero();
    for (int64_t i = 0; i < s.key_dim; ++i) {
        const Vec16 key = broadcast(s.keys[i]), query = broadcast(s.queries[i]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            const Vec16 x = load(state + i * stride + 16 * v);
            read[v] = fma(key, x, read[v]);
            seen[v] = fma(query, x, seen[v]);
        }
    }
    for (int64_t t = 0; t < s.tokens; ++t) {
        const Vec16 decay = broadcast(s.decays[t * s.gates_size]);
        const Vec16 beta = broadcast(s.betas[t * s.gates_size]);
        const Vec16 product = broadcast(s.products[t * s.gates_size]);
        Vec16 delta[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            const Vec16 value = load_some(values + t * s.channels + 16 * v, columns - 16 * v);
            delta[v] = beta * (value - decay * read[v]);
            store(out + t * out_stride + 16 * v, fma(product, delta[v], decay * seen[v]));
            read[v] = seen[v] = zero();
        }
        const float* keys = s.keys + t * s.channels;
        if (t + 1 == s.tokens) {
            for (int64_t i = 0; i < s.key_dim; ++i) {
                const Vec16 key = broadcast(keys[i]);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) {
                    float* x = state + i * stride + 16 * v;
                    store(x, fma(key, delta[v], decay * load(x)));
                }
            }
            return;
        }
        const float *next_keys = keys + s.channels, *next_queries = s.queries + (t + 1) * s.channels;
        for (int64_t i = 0; i < s.key_dim; ++i) {
            const Vec16 key = broadcast(keys[i]), next_key = broadcast(next_keys[i]);
            const Vec16 next_query = broadcast(next_queries[i]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) {
                float* at = state + i * stride + 16 * v;
                const Vec16 x = fma(key, delta[v], decay * load(at));
                store(at, x);
                read[v] = fma(next_key, x, read[v]);
                seen[v] = fma(next_query, x, seen[v]);
            }
        }
    }
}

template <typename Element>
void delta_rule_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& a = *static_cast<const DeltaNetArguments*>(untyped);
    const int64_t row = piece / a.value_heads, head = piece % a.value_heads;
    const int64_t first = a.states.query_starts[row], end = a.states.query_starts[row + 1];
    const int64_t channels = a.channels(), dim = a.value_dim, whole = (dim + 15) / 16 * 16;
    if (head == 0)  // all pieces of delta_inputs have read them
        keep_inputs(delta_net_inputs<Element>(a), a.states.array(row, 0), first, end - first, a.width,
                    channels);
    const int64_t key_head = a.key_head(head);
    const float* mixed = a.mixed + first * channels;
    const float* gates = a.gates + first * a.gates_size();
    const float* values = mixed + 2 * a.key_size() + head * dim;
    const DeltaSteps steps{mixed + key_head * a.key_dim,
                           mixed + a.key_size() + key_head * a.key_dim,
                           values,
                           gates + head,
                           gates + a.value_heads + head,
                           gates + 2 * a.value_heads + key_head,
                           end - first,
                           channels,
                           a.gates_size(),
                           a.key_dim};
    const int64_t copied = columns_to_copy(a.key_dim);
    float* copy = reinterpret_cast<float*>(
        scratch.reserve(size_t(copied + steps.tokens * whole) * sizeof(float)));
    float* out = copy + copied;
    float* state = a.states.array(row, 1 + head);
    by_columns(state, a.key_dim, dim, steps.tokens, copy,
               [&](auto vectors, float* block, int64_t stride, int64_t c) {
                   delta_columns<decltype(vectors)::value>(steps, block, stride, values + c, dim - c,
                                                           out + c, whole);
               });
    for (int64_t t = 0; t < steps.tokens; ++t) {
        float* mine = out + t * whole;
        const Element* gate =
            static_cast<const Element*>(a.qkv_gate) + (first + t) * a.stride() + channels + head * dim;
        Element* target = static_cast<Element*>(a.out) + (first + t) * a.value_size() + head * dim;
        const Vec16 scale = broadcast(inverse_rms(mine, dim, a.eps));
        for (int64_t i = 0; i < dim; i += 16) {
            const Vec16 z = load_some(gate + i, dim - i);
            const Vec16 normed = load(mine + i) * scale * load_some(a.norm + i, dim - i);
            store_some(target + i, normed * (z * sigmoid(z)), dim - i);
        }
    }
}

}  // namespace
}  // namespace loire
