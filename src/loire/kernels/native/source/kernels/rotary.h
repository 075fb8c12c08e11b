// Splits fused projections into queries, keys and values; norms the heads if asked; rotates queries
// and keys (Su et al. 2021, pairs (i, i + half)); writes keys and values to their cache slots, as they
// are or as codes.

#pragma once

#include "kept_codes.h"
#include "norm.h"
#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

template <typename Element>
INLINE void rotate_head(const Element* head, Element* out, const float* weight,
                        const RotaryArguments& a, const float* cos, const float* sin,
                        float* wide) {
    for (int64_t i = 0; i < a.head_dim; i += 16)
        store_some(wide + i, load_some(head + i, a.head_dim - i), a.head_dim - i);
    if (weight != nullptr) {
        const Vec16 scale = broadcast(inverse_rms(wide, a.head_dim, a.eps));
        for (int64_t i = 0; i < a.head_dim; i += 16) {
            const int64_t count = a.head_dim - i;
            const Vec16 x = load_some(wide + i, count) * scale * load_some(weight + i, count);
            store_some(wide + i, x, count);
        }
    }
    for (int64_t i = 0; i < a.half; i += 16) {
        const int64_t count = a.half - i;
        const Vec16 first = load_some(wide + i, count);
        const Vec16 second = load_some(wide + a.half + i, count);
        const Vec16 c = load_some(cos + i, count), s = load_some(sin + i, count);
        store_some(out + i, first * c - second * s, count);
        store_some(out + a.half + i, second * c + first * s, count);
    }
    for (int64_t i = 2 * a.half; i < a.head_dim; i += 16)
        store_some(out + i, load_some(wide + i, a.head_dim - i), a.head_dim - i);
}

// Puts a key or value into a block of the cache, as its vector number line.
template <typename Kept, typename Element>
INLINE void keep_vector(const RotaryArguments& a, const Element* vector, void* cache, float* scales,
                        int64_t block, int64_t line) {
    Kept* kept = static_cast<Kept*>(cache) + block * a.block_stride + line * a.head_dim;
    if constexpr (sizeof(Kept) == 1)
        keep_codes(vector, a.head_dim, kept, scales + block * a.scale_stride + line);
    else
        __builtin_memcpy(kept, vector, a.head_dim * sizeof(Element));
}

// A value without a rotation, in `out` if it is normalised, else where it is.
template <typename Element>
INLINE const Element* settled_value(const Element* value, const RotaryArguments& a, float* wide,
                                    Element* out) {
    if (!a.norm_values) return value;
    for (int64_t i = 0; i < a.head_dim; i += 16)
        store_some(wide + i, load_some(value + i, a.head_dim - i), a.head_dim - i);
    const Vec16 scale = broadcast(inverse_rms(wide, a.head_dim, a.eps));
    for (int64_t i = 0; i < a.head_dim; i += 16)
        store_some(out + i, load_some(wide + i, a.head_dim - i) * scale, a.head_dim - i);
    return out;
}

template <typename Element, typename Kept>
void rotary_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& a = *static_cast<const RotaryArguments*>(untyped);
    float* wide = reinterpret_cast<float*>(scratch.reserve(2 * a.head_dim * sizeof(float)));
    Element* rotated = reinterpret_cast<Element*>(wide + a.head_dim);
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const float* cos = a.cos + a.positions[t] * a.half;
        const float* sin = a.sin + a.positions[t] * a.half;
        const int64_t heads = a.heads + (a.values_are_keys ? 1 : 2) * a.kv_heads;
        const Element* head = static_cast<const Element*>(a.qkv) + t * heads * a.head_dim;
        Element* query = static_cast<Element*>(a.queries) + t * a.heads * a.head_dim;
        for (int64_t h = 0; h < a.heads; ++h, head += a.head_dim, query += a.head_dim)
            rotate_head(head, query, a.query_weight, a, cos, sin, wide);
        const int64_t block = a.slots[t] / a.block_size, offset = a.slots[t] % a.block_size;
        for (int64_t k = 0; k < a.kv_heads; ++k, head += a.head_dim) {
            rotate_head(head, rotated, a.key_weight, a, cos, sin, wide);
            keep_vector<Kept>(a, rotated, a.keys, a.key_scales, block, k * a.block_size + offset);
        }
        if (a.values_are_keys) head -= a.kv_heads * a.head_dim;
        for (int64_t k = 0; k < a.kv_heads; ++k, head += a.head_dim) {
            const Element* value = settled_value(head, a, wide, rotated);
            keep_vector<Kept>(a, value, a.values, a.value_scales, block, k * a.block_size + offset);
        }
    }
}

}  // namespace
}  // namespace loire
