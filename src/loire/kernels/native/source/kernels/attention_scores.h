// Scores of attention: queries times transposed keys, scaled, capped, and minus infinity where a
// query must not see a key.

#pragma once

#include "attention_keys.h"
#include "attention_state.h"

namespace loire {
namespace {

// a = minus infinity for lanes outside [first, last].
INLINE Vec16 keep_lanes(const Vec16& value, int64_t first, int64_t last) {
    Vec16 result;
    EACH_PART {
        Ints lane;
        for (int i = 0; i < LANES; ++i) lane[i] = p * LANES + i;
        const Ints low = Ints{} + int32_t(first < 0 ? 0 : first > 16 ? 16 : first);
        const Ints high = Ints{} + int32_t(last < -1 ? -1 : last > 15 ? 15 : last);
        const Ints kept = (lane >= low) & (lane <= high);
        result.part[p] = kept ? value.part[p] : (Floats{} - __builtin_inff());
    }
    return result;
}

// Caps scores, and hides keys from those that must not see them: what few rows need.
template <typename Piece>
void revise_scores(const Piece& piece, int64_t row, int64_t rows, int64_t base, int64_t key) {
    const float cap = piece.a.softcap;
    for (int64_t r = row; r < row + rows; ++r) {
        const int64_t position = piece.position(r), first = piece.first_seen(position);
        Vec16 high = load(piece.highest + r * 16);
        for (int64_t k = key; k < key + KEYS_TOGETHER; k += 16) {
            float* at = piece.scores + r * SCORES + k;
            Vec16 score = load(at);
            if (cap != 0.0f) {
                const Vec16 one = broadcast(1.0f), two = broadcast(2.0f);
                const Vec16 power = exponential(score * broadcast(2.0f / cap));
                score = broadcast(cap) * (one - two / (power + one));
            }
            const int64_t here = base + k;
            if (!piece.whole && (here < first || here + 15 > position))
                score = keep_lanes(score, first - here, position - here);
            store(at, score);
            high = maximum(high, score);
        }
        store(piece.highest + r * 16, high);
    }
}

// Scores of ROWS rows and the keys [base + key, + KEYS_TOGETHER).
template <int ROWS, typename Piece>
void score_rows(const Piece& piece, int64_t row, int64_t base, int64_t key,
                Fetching<typename Piece::Kept>& fetching) {
    using Scores = typename ScoresOf<typename Piece::Element>::Type;
    const auto& a = piece.a;
    const int64_t words = Scores::words(a.head_dim);
    const auto* queries = piece.queries + row * Scores::queries(a.head_dim);
    const float* tile = piece.tiles;
    Vec16 scores[TILES_TOGETHER][ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int t = 0; t < TILES_TOGETHER; ++t) scores[t][r] = zero();
    Fetching<typename Piece::Kept> ahead = fetching;  // (in registers)
    for (int64_t w = 0; w < words; ++w) {
        ahead.lines(LINES_PER_WORD);
#pragma GCC unroll 2
        for (int t = 0; t < TILES_TOGETHER; ++t)
            Scores::template link<ROWS>(load(tile + t * 16), queries, scores[t]);
        tile += KEYS_TOGETHER;
        queries += Scores::PER_WORD * ROWS;
    }
    fetching = ahead;
    const Vec16 scale = broadcast(a.scale);
    const int64_t here = base + key, last = piece.position(row + ROWS - 1);
    const bool all_seen = piece.whole || (here >= piece.first_seen(last) &&
                                          here + KEYS_TOGETHER - 1 <= piece.position(row));
    const bool is_final = all_seen && a.softcap == 0.0f;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        float* highest = piece.highest + (row + r) * 16;
        Vec16 high = load(highest);
#pragma GCC unroll 2
        for (int t = 0; t < TILES_TOGETHER; ++t) {
            Vec16 score = scores[t][r] * scale;
            if constexpr (Piece::SCALED)
                score = score * load(piece.at.key_scales + key + t * 16);
            store(piece.scores + (row + r) * SCORES + key + t * 16, score);
            high = maximum(high, score);
        }
        if (is_final) store(highest, high);
    }
    if (!is_final) revise_scores(piece, row, ROWS, base, key);
}

}  // namespace
}  // namespace loire
