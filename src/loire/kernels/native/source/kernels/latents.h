// What latent attention keeps of each token, a vector in one: the rotated key that all heads share, then
// the normed latent. Queries are rotated into the first dimensions of theirs.

#pragma once

#include "operations.h"
#include "rotary.h"

namespace loire {
namespace {

template <typename Element, typename Kept>
void latents_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& a = *static_cast<const LatentsArguments*>(untyped);
    const int64_t dim = a.rope_dim + a.rank, half = a.rope_dim / 2;
    RotaryArguments turning{};
    turning.head_dim = a.rope_dim;
    turning.half = half;
    RotaryArguments keeping{};
    keeping.head_dim = dim;
    keeping.block_stride = a.block_stride;
    keeping.scale_stride = a.scale_stride;
    float* wide = reinterpret_cast<float*>(scratch.reserve(2 * dim * sizeof(float)));
    Element* kept = reinterpret_cast<Element*>(wide + dim);
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const float* cos = a.cos + a.positions[t] * half;
        const float* sin = a.sin + a.positions[t] * half;
        const Element* turned = static_cast<const Element*>(a.turned) + t * a.turned_stride;
        Element* query = static_cast<Element*>(a.queries) + t * a.heads * dim;
        for (int64_t h = 0; h < a.heads; ++h, turned += a.rope_dim, query += dim)
            rotate_head(turned, query, nullptr, turning, cos, sin, wide);
        const Element* latent = static_cast<const Element*>(a.latents) + t * dim;
        rotate_head(latent + a.rank, kept, nullptr, turning, cos, sin, wide);
        for (int64_t i = 0; i < a.rank; i += 16)
            store_some(wide + i, load_some(latent + i, a.rank - i), a.rank - i);
        normalise(wide, a.weight, a.rank, a.eps, kept + a.rope_dim);
        const int64_t block = a.slots[t] / a.block_size, offset = a.slots[t] % a.block_size;
        keep_vector<Kept>(keeping, kept, a.kept, a.scales, block, offset);
    }
}

}  // namespace
}  // namespace loire
