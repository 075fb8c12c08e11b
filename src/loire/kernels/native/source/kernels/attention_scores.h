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

// Scores of ROWS rows and the keys [base + key, + KEYS_TOGETHER).
template <int ROWS, typename Piece>
void score_rows(const Piece& piece, int64_t row, int64_t base, int64_t key,
                Fetching<typename Piece::Kept>& fetching) {
    using Scores = typename ScoresOf<typename Piece::Element>::Type;
    const auto& a = piece.a;
    const int64_t words = Scores::words(a.head_dim), stride = Scores::queries(a.head_dim);
    const auto* queries = piece.queries + row * stride;
    Vec16 scores[TILES_TOGETHER][ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int t = 0; t < TILES_TOGETHER; ++t) scores[t][r] = zero();
    for (int64_t w = 0; w < words; ++w) {
        fetching.lines(LINES_PER_WORD);
#pragma GCC unroll 2
        for (int t = 0; t < TILES_TOGETHER; ++t)
            Scores::template link<ROWS>(load(piece.tiles + (t * words + w) * 16), queries, stride,
                                        w, scores[t]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        const int64_t position = piece.position(row + r);
        const int64_t first = piece.first_seen(position);
#pragma GCC unroll 2
        for (int t = 0; t < TILES_TOGETHER; ++t) {
            Vec16 score = scores[t][r] * broadcast(a.scale);
            if constexpr (Piece::SCALED)
                score = score * load(piece.at.key_scales + key + t * 16);
            if (a.softcap != 0.0f) {
                const Vec16 one = broadcast(1.0f), two = broadcast(2.0f);
                const Vec16 power = exponential(score * broadcast(2.0f / a.softcap));
                score = broadcast(a.softcap) * (one - two / (power + one));
            }
            const int64_t here = base + key + t * 16;
            if (!piece.whole && (here < first || here + 15 > position))
                score = keep_lanes(score, first - here, position - here);
            store(piece.scores + (row + r) * SPLIT + key + t * 16, score);
        }
    }
}

}  // namespace
}  // namespace loire
