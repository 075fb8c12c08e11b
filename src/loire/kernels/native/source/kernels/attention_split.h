// One split of the keys of attention: finds them in the cache, then scores them and weighs their
// values for all rows of a piece.

#pragma once

#include "attention_keys.h"
#include "attention_scores.h"
#include "attention_state.h"
#include "attention_values.h"
#include "kept_codes.h"

namespace loire {
namespace {

// Where keys and values [start, end) of the split lie; those outside of all are zeros.
template <typename Piece>
INLINE void locate(Piece& piece, const Seen& all, int64_t base, int64_t start, int64_t end,
                   const char* zeros) {
    using Element = typename Piece::Element;
    using Kept = typename Piece::Kept;
    const auto& a = piece.a;
    auto& at = piece.at;
    const auto set_nothing = [&](int64_t key) {
        at.keys[key] = at.kept_values[key] = reinterpret_cast<const Kept*>(zeros);
        at.values[key] = reinterpret_cast<const Element*>(zeros);
        at.key_scales[key] = at.value_scales[key] = 0.0f;
    };
    for (int64_t key = start; key < all.first; ++key) set_nothing(key);
    const int32_t* block =
        a.block_tables + piece.piece.row * a.table_size + (base + all.first) / a.block_size;
    int64_t offset = (base + all.first) % a.block_size;
    const int64_t first_line = piece.piece.kv_head * a.block_size;  // of this head in a block
    const auto first_scale = [&](int32_t block) { return block * a.scale_stride + first_line; };
    if constexpr (Piece::SCALED) {  // all of them at once, not one after another
        const int64_t blocks = (offset + all.last - all.first + a.block_size - 1) / a.block_size;
        for (int64_t i = 0; i < blocks; ++i)
            for (int64_t line = 0; line < a.block_size; line += 16) {
                __builtin_prefetch(a.key_scales + first_scale(block[i]) + line);
                __builtin_prefetch(a.value_scales + first_scale(block[i]) + line);
            }
    }
    for (int64_t key = all.first; key < all.last; ++block, offset = 0) {
        int64_t element = *block * a.block_stride + (first_line + offset) * a.head_dim;
        const int64_t scales = Piece::SCALED ? first_scale(*block) : 0;
        for (; offset < a.block_size && key < all.last; ++offset, element += a.head_dim, ++key) {
            at.keys[key] = static_cast<const Kept*>(a.keys) + element;
            at.kept_values[key] = static_cast<const Kept*>(a.values) + element;
            if constexpr (Piece::SCALED) {
                at.key_scales[key] = a.key_scales[scales + offset];
                at.value_scales[key] = a.value_scales[scales + offset];
                at.values[key] = piece.widened + (16 + key) * piece.stride;
            } else {
                at.values[key] = at.kept_values[key];
            }
        }
    }
    for (int64_t key = all.last; key < end; ++key) set_nothing(key);
}

// Sixteen keys into a tile.
template <typename Piece>
INLINE void transpose_keys(const Piece& piece, int64_t key, int64_t words, float* tile) {
    if constexpr (Piece::SCALED) {
        const char* rows[16];
        for (int i = 0; i < 16; ++i) {
            auto* row = piece.widened + i * piece.stride;
            widen(piece.at.keys[key + i], piece.a.head_dim, row);
            rows[i] = reinterpret_cast<const char*>(row);
        }
        transpose(rows, words, tile, KEYS_TOGETHER);
    } else {
        transpose(reinterpret_cast<const char* const*>(piece.at.keys + key), words, tile,
                  KEYS_TOGETHER);
    }
}

template <typename Piece>
void compute_split(Piece& piece, int64_t split, const char* zeros, const Partial& out) {
    const auto& a = piece.a;
    const int64_t base = split * SPLIT;
    const Seen all(piece, 0, piece.rows, base);
    const int64_t start = all.first / KEYS_TOGETHER * KEYS_TOGETHER;
    const int64_t end = (all.last + KEYS_TOGETHER - 1) / KEYS_TOGETHER * KEYS_TOGETHER;
    locate(piece, all, base, start, end, zeros);
    const int64_t words = ScoresOf<typename Piece::Element>::Type::words(a.head_dim);
    using Kept = typename Piece::Kept;
    // Of those from `first` on that are before `last`, so many.
    const auto fetch = [&](const Kept* const* vectors, int64_t first, int64_t last, int64_t count) {
        const int64_t there = first < last ? last - first : 0;
        return Fetching<Kept>(there > 0 ? vectors + first : vectors, there < count ? there : count,
                              a.head_dim);
    };
    fetch(piece.at.keys, start, end, KEYS_AHEAD).rest();
    for (int64_t r = 0; r < piece.rows; ++r)
        store(piece.highest + r * 16, broadcast(-__builtin_inff()));
    for (int64_t key = start; key < end; key += KEYS_TOGETHER) {
        Fetching<Kept> fetching =
            key + KEYS_TOGETHER < end
                ? fetch(piece.at.keys, key + KEYS_AHEAD, end, KEYS_TOGETHER)
                : fetch(piece.at.kept_values, all.first, all.last, VALUES_AHEAD);
        for (int64_t t = 0; t < TILES_TOGETHER; ++t)
            transpose_keys(piece, key + t * 16, words, piece.tiles + t * 16);
        for_rows<ROWS_TOGETHER>(piece.rows, [&](auto count, int64_t row) {
            const Seen seen(piece, row, count.value, base);
            if (key < seen.last && key + KEYS_TOGETHER > seen.first)
                score_rows<count.value>(piece, row, base, key, fetching);
        });
        fetching.rest();
    }
    if constexpr (Piece::SCALED)
        for (int64_t key = all.first; key < all.last; ++key) {
            if (key + VALUES_AHEAD < all.last)
                for (int64_t d = 0; d < a.head_dim; d += 64)
                    __builtin_prefetch(piece.at.kept_values[key + VALUES_AHEAD] + d);
            widen(piece.at.kept_values[key], a.head_dim,
                  piece.widened + (16 + key) * piece.stride);
        }
    for_rows<ROWS_TOGETHER>(piece.rows, [&](auto count, int64_t row) {
        const Seen seen(piece, row, count.value, base);
        finish_rows<count.value>(piece, row, seen.first, seen.last, out);
    });
}

}  // namespace
}  // namespace loire
