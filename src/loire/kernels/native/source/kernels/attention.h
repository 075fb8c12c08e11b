// Causal attention over the paged cache, one pass over keys and values, softmax in float32.
//
// Keys are cut at multiples of SPLIT positions from 0. A split gives each query its maximum m, the
// sum l of exp(score - m) and the weighted values o; splits are folded in ascending order, as in
// Milakov & Gimelshein 2018 and FlashAttention (Dao et al. 2022). Only the position of a query
// decides what is added in which order: keys it must not see get the weight 0, and adding those
// changes no bit. A sink (Xiao et al. 2023), if a head has one, comes before them all. So it does not matter which queries are computed together, or by whom.
//
// The rows of a piece are its tokens times the query heads of one key/value head: each key and
// value is read once for all of them. Tokens of several sequences are in one piece where those share
// a prefix.
//
// attention_split.h computes a split, with attention_scores.h (over attention_keys.h) and
// attention_values.h; here splits are put together.

#pragma once

#include "attention_split.h"

namespace loire {
namespace {

// total = total and part, each relative to its own maximum, brought to the common one.
INLINE void fold(const Partial& total, const Partial& part, int64_t rows, int64_t stride) {
    for (int64_t first = 0; first < rows; first += 16) {
        const int64_t count = rows - first < 16 ? rows - first : 16;
        const Vec16 before = load_some(total.maxima + first, count);
        const Vec16 added = load_some(part.maxima + first, count);
        const Vec16 most = maximum(before, added);
        Vec16 reference;
        EACH_PART reference.part[p] = most.part[p] == -__builtin_inff() ? Floats{} : most.part[p];
        const Vec16 old_scale = exponential<false>(before - reference);
        const Vec16 new_scale = exponential<false>(added - reference);
        const Vec16 sums = fma(load_some(total.sums + first, count), old_scale,
                               load_some(part.sums + first, count) * new_scale);
        store_some(total.sums + first, sums, count);
        store_some(total.maxima + first, most, count);
        float old_scales[16], new_scales[16];
        store(old_scales, old_scale), store(new_scales, new_scale);
        for (int64_t r = 0; r < count; ++r) {
            const Vec16 kept = broadcast(old_scales[r]), taken = broadcast(new_scales[r]);
            float* values = total.values + (first + r) * stride;
            const float* others = part.values + (first + r) * stride;
            for (int64_t d = 0; d < stride; d += 16)
                store(values + d, fma(load(values + d), kept, load(others + d) * taken));
        }
    }
}

// Copies rows of a partial result.
INLINE void copy(const Partial& target, const Partial& source, int64_t rows, int64_t stride) {
    __builtin_memcpy(target.values, source.values, rows * stride * sizeof(float));
    __builtin_memcpy(target.maxima, source.maxima, rows * sizeof(float));
    __builtin_memcpy(target.sums, source.sums, rows * sizeof(float));
}

// Queries of some tokens, which are the rows from first_row on, and their positions.
template <typename Piece>
void keep_queries(const Piece& piece, const AttentionQueries& given, int64_t first_row) {
    using Element = typename Piece::Element;
    using Scores = typename ScoresOf<Element>::Type;
    const auto& a = piece.a;
    for (int64_t r = 0; r < given.tokens * piece.group; ++r) {
        const int64_t token = r / piece.group, row = first_row + r;
        const int64_t head = piece.piece.kv_head * piece.group + r % piece.group;
        const auto* query = static_cast<const Element*>(a.queries) +
                            ((given.first_token + token) * a.heads + head) * a.head_dim;
        const int64_t block = row / ROWS_TOGETHER * ROWS_TOGETHER, left = piece.rows - block;
        Scores::keep(query, a.head_dim, left < ROWS_TOGETHER ? left : ROWS_TOGETHER,
                     piece.queries + block * Scores::queries(a.head_dim) + (row - block));
        piece.positions[row] = given.first_position + token;
    }
}

template <typename Piece>
void write_result(const Piece& piece, const AttentionQueries& given, const Partial& total) {
    using Element = typename Piece::Element;
    const auto& a = piece.a;
    for (int64_t r = 0; r < given.tokens * piece.group; ++r) {
        const int64_t token = given.first_token + r / piece.group;
        const int64_t head = piece.piece.kv_head * piece.group + r % piece.group;
        Element* out = static_cast<Element*>(a.out) + (token * a.heads + head) * a.head_dim;
        const Vec16 divisor = broadcast(total.sums[r]);
        for (int64_t d = 0; d < a.head_dim; d += 16)
            store_some(out + d, load(total.values + r * piece.stride + d) / divisor,
                       a.head_dim - d);
    }
}

// Before any split, a head's sink has been seen: a score without a value.
template <typename Piece>
void begin(const Piece& piece, const Partial& total, int64_t rows) {
    const float* sinks = piece.a.sinks;
    __builtin_memset(total.values, 0, rows * piece.stride * sizeof(float));
    for (int64_t r = 0; r < rows; ++r) {
        total.sums[r] = sinks == nullptr ? 0.0f : 1.0f;
        total.maxima[r] = sinks == nullptr
                              ? -__builtin_inff()
                              : sinks[piece.piece.kv_head * piece.group + r % piece.group];
    }
}

template <typename Element, typename Kept>
void attention_piece(const void* untyped, int64_t index, Scratch& scratch) {
    using Query = typename ScoresOf<Element>::Type::Query;
    const auto& a = *static_cast<const AttentionArguments*>(untyped);
    const AttentionPiece& given = a.pieces[index];
    const AttentionMember* members = a.members + given.first_member;
    const int64_t group = a.heads / a.kv_heads, stride = (a.head_dim + 15) / 16 * 16;
    int64_t rows = 0;
    for (int32_t m = 0; m < given.members; ++m) rows += members[m].queries.tokens * group;

    // Scratch, in floats: scores, the highest of them, tiles, zeros, two sets of partial results,
    // queries, widened codes, positions.
    const int64_t tile_size = stride * KEYS_TOGETHER, partial_size = rows * (stride + 2);
    const int64_t widened_size = sizeof(Kept) == 1 ? (16 + SPLIT) * stride : 0;
    float* memory = reinterpret_cast<float*>(
        scratch.reserve((rows * (SCORES + 16) + tile_size + stride + 2 * partial_size + rows * stride +
                         widened_size) *
                            sizeof(float) +
                        rows * sizeof(int64_t)));
    float* scores = memory;
    float* highest = scores + rows * SCORES;
    float* tiles = highest + rows * 16;
    float* zeros = tiles + tile_size;
    float* total_memory = zeros + stride;
    float* part_memory = total_memory + partial_size;
    auto* queries = reinterpret_cast<Query*>(part_memory + partial_size);
    float* widened_memory = part_memory + partial_size + rows * stride;
    auto* widened = reinterpret_cast<Element*>(widened_memory);
    auto* positions = reinterpret_cast<int64_t*>(widened_memory + widened_size);
    __builtin_memset(zeros, 0, stride * sizeof(float));
    const char* nothing = reinterpret_cast<const char*>(zeros);

    const AttentionQueries& first = members[0].queries;
    Piece<Element, Kept> piece{a,       given,     given.members > 1, group, rows,    stride,
                               queries, positions, scores,            highest, tiles, widened, {}};
    const auto partial = [&](float* where, int64_t count) {
        return Partial{where, where + count * stride, where + count * (stride + 1)};
    };
    const Partial part = partial(part_memory, rows);
    int64_t row = 0;
    for (int32_t m = 0; m < given.members; ++m) {
        keep_queries(piece, members[m].queries, row);
        row += members[m].queries.tokens * group;
    }
    if (given.split < 0) {
        const Partial total = partial(total_memory, rows);
        begin(piece, total, rows);
        const int64_t last = (first.first_position + first.tokens - 1) / SPLIT;
        for (int64_t s = piece.first_seen(first.first_position) / SPLIT; s <= last; ++s) {
            compute_split(piece, s, nothing, part);
            fold(total, part, rows, stride);
        }
        return write_result(piece, first, total);
    }
    compute_split(piece, given.split, nothing, part);
    row = 0;
    for (int32_t m = 0; m < given.members; ++m) {
        const AttentionMember& member = members[m];
        const AttentionMerge& merge = a.merges[member.merge];
        const int64_t count = member.queries.tokens * group;
        const auto slot = [&](int64_t split) {
            return partial(a.partials + (merge.first_partial + split - merge.first_split) *
                                            a.partial_floats,
                           count);
        };
        copy(slot(given.split),
             {part.values + row * stride, part.maxima + row, part.sums + row}, count, stride);
        row += count;
        if (__atomic_sub_fetch(a.unfinished + member.merge, 1, __ATOMIC_ACQ_REL) != 0) continue;
        const Partial total = partial(total_memory, count);
        begin(piece, total, count);
        for (int64_t s = merge.first_split; s < merge.first_split + merge.splits; ++s)
            fold(total, slot(s), count, stride);
        write_result(piece, member.queries, total);
    }
}

}  // namespace
}  // namespace loire
