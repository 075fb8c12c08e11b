// The softmax of attention over one split of the keys, and the values weighed by it.
//
// In bfloat16 the weights exp(score - m) are rounded to bfloat16 before they meet the values (as in
// FlashAttention), so that a coarse exponential will do, and l is the sum of what they are rounded to.
// Keys are weighed in pairs, the later one first, as VDPBF16PS does it.

#pragma once

#include "attention_state.h"
#include "vec16.h"

namespace loire {
namespace {

// Weights lie where the scores were, in the type of the values. Keeps those of KEYS_TOGETHER keys, and
// gives back what was kept.
INLINE void keep_weights(float* weights, int64_t key, Vec16 (&given)[TILES_TOGETHER], float) {
    for (int t = 0; t < TILES_TOGETHER; ++t) store(weights + key + t * 16, given[t]);
}

INLINE void keep_weights(float* weights, int64_t key, Vec16 (&given)[TILES_TOGETHER], bfloat16) {
    bfloat16* kept = reinterpret_cast<bfloat16*>(weights) + key;
#if defined(LOIRE_AVX512_BF16)
    static_assert(TILES_TOGETHER == 2);
    const auto both = (__m512i)_mm512_cvtne2ps_pbh(given[1].part[0], given[0].part[0]);
    _mm512_storeu_si512(kept, both);
    // Half i of 16, and of the 16 behind them, in the upper half of lane i.
    constexpr __mmask32 UPPER = 0xaaaaaaaa;
    const __m512i first = _mm512_set_epi32(15 << 16, 14 << 16, 13 << 16, 12 << 16, 11 << 16, 10 << 16,
                                           9 << 16, 8 << 16, 7 << 16, 6 << 16, 5 << 16, 4 << 16,
                                           3 << 16, 2 << 16, 1 << 16, 0);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(16 << 16));
    given[0].part[0] = (Floats)_mm512_maskz_permutexvar_epi16(UPPER, first, both);
    given[1].part[0] = (Floats)_mm512_maskz_permutexvar_epi16(UPPER, second, both);
#else
    for (int t = 0; t < TILES_TOGETHER; ++t) {
        store(kept + t * 16, given[t]);
        given[t] = load(kept + t * 16);
    }
#endif
}

INLINE float weight_at(const float* weights, int64_t key, float) { return weights[key]; }

INLINE float weight_at(const float* weights, int64_t key, bfloat16) {
    const uint32_t bits = uint32_t(reinterpret_cast<const bfloat16*>(weights)[key].bits) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
}

// values[row][d] = sum over the pairs of keys [first, last) of scores[row][key] * value[key][d], for
// VECTORS * 16 dimensions.
template <int ROWS, int VECTORS, bool WHOLE, typename Piece>
INLINE void weigh_values(const Piece& piece, int64_t row, int64_t first, int64_t last,
                         int64_t dimension, float* target) {
    using Element = typename Piece::Element;
    Vec16 sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = zero();
    const float* weights = piece.scores + row * SCORES;
    for (int64_t pair = first; pair < last; pair += 2)
#pragma GCC unroll 2
        for (int64_t key = pair + 1; key >= pair; --key) {
            const Element* value = piece.at.values[key] + dimension;
            Vec16 wide[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
                wide[v] = WHOLE
                              ? load(value + 16 * v)
                              : load_some(value + 16 * v, piece.a.head_dim - dimension - 16 * v);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const Vec16 weight = broadcast(weight_at(weights + r * SCORES, key, Element{}));
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) sums[r][v] = fma(weight, wide[v], sums[r][v]);
            }
        }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            store(target + (row + r) * piece.stride + dimension + 16 * v, sums[r][v]);
}

#if defined(LOIRE_AVX512_BF16)
// The same with two keys per instruction. The pairs of 32 dimensions lie in two registers: of each
// eight dimensions the first four in one, the others in the other.
template <int ROWS, int VECTORS, bool WHOLE, typename Piece>
INLINE void weigh_pairs(const Piece& piece, int64_t row, int64_t first, int64_t last,
                        int64_t dimension, float* target) {
    static_assert(VECTORS % 2 == 0);
    __m512 sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = _mm512_setzero_ps();
    const int64_t left = piece.a.head_dim - dimension;
    const __mmask32 mask = left >= 32 ? ~0u : (1u << left) - 1;
    const float* weights = piece.scores + row * SCORES;
    const int64_t fetched = Piece::SCALED || row > 0 ? first : last - VALUES_AHEAD;
    for (int64_t key = first; key < last; key += 2) {
        if (key < fetched)
#pragma GCC unroll 4
            for (int line = 0; line < VECTORS; ++line)  // (two of each key)
                __builtin_prefetch(piece.at.values[key + VALUES_AHEAD + line % 2] + dimension +
                                   line / 2 * 32);
        const bfloat16* earlier = piece.at.values[key] + dimension;
        const bfloat16* later = piece.at.values[key + 1] + dimension;
        __m512bh pairs[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v += 2) {
            const __m512i x = WHOLE ? _mm512_loadu_si512(earlier + 16 * v)
                                    : _mm512_maskz_loadu_epi16(mask, earlier);
            const __m512i y = WHOLE ? _mm512_loadu_si512(later + 16 * v)
                                    : _mm512_maskz_loadu_epi16(mask, later);
            pairs[v] = (__m512bh)_mm512_unpacklo_epi16(x, y);
            pairs[v + 1] = (__m512bh)_mm512_unpackhi_epi16(x, y);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            int32_t two;
            __builtin_memcpy(&two, reinterpret_cast<const bfloat16*>(weights + r * SCORES) + key, 4);
            const auto weight = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], weight, pairs[v]);
        }
    }
    const __m512i lower = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v += 2) {
            float* out = target + (row + r) * piece.stride + dimension + 16 * v;
            _mm512_storeu_ps(out, _mm512_permutex2var_ps(sums[r][v], lower, sums[r][v + 1]));
            if (WHOLE || left > 16)
                _mm512_storeu_ps(out + 16,
                                 _mm512_permutex2var_ps(sums[r][v], upper, sums[r][v + 1]));
        }
}

#endif

template <int ROWS, typename Piece>
void weigh_all(const Piece& piece, int64_t row, int64_t first, int64_t last, float* target) {
    // As many sums as registers hold beside the values.
    constexpr int VECTORS = ROWS > 6 ? 2 : VECTORS_TOGETHER;
    const int64_t dim = piece.a.head_dim;
    int64_t d = 0;
#if defined(LOIRE_AVX512_BF16)
    if constexpr (sizeof(typename Piece::Element) == 2) {
        if constexpr (VECTORS == 4)
            for (; d + 64 <= dim; d += 64)
                weigh_pairs<ROWS, 4, true>(piece, row, first, last, d, target);
        for (; d + 32 <= dim; d += 32)
            weigh_pairs<ROWS, 2, true>(piece, row, first, last, d, target);
        if (d < dim) weigh_pairs<ROWS, 2, false>(piece, row, first, last, d, target);
        return;
    }
#endif
    for (; d + 16 * VECTORS <= dim; d += 16 * VECTORS)
        weigh_values<ROWS, VECTORS, true>(piece, row, first, last, d, target);
    for (; d + 16 <= dim; d += 16)
        weigh_values<ROWS, 1, true>(piece, row, first, last, d, target);
    if (d < dim) weigh_values<ROWS, 1, false>(piece, row, first, last, d, target);
}

// Softmax of one row over one split, whose largest score is `most`: weights where scores were. Their sum.
template <typename Piece>
INLINE float soften_row(const Piece& piece, float* scores, float most, int64_t start, int64_t last) {
    using Element = typename Piece::Element;
    const Vec16 reference = broadcast(most == -__builtin_inff() ? 0.0f : most);
    Vec16 total = zero();
    for (int64_t k = start; k < last; k += KEYS_TOGETHER) {
        Vec16 weights[TILES_TOGETHER];
        for (int t = 0; t < TILES_TOGETHER; ++t)
            weights[t] =
                exponential<false, sizeof(Element) == 2>(load(scores + k + t * 16) - reference);
        if constexpr (Piece::SCALED) {
            for (int t = 0; t < TILES_TOGETHER; ++t) {
                total = total + weights[t];
                weights[t] = weights[t] * load(piece.at.value_scales + k + t * 16);
            }
            keep_weights(scores, k, weights, Element{});
        } else {
            keep_weights(scores, k, weights, Element{});
            for (int t = 0; t < TILES_TOGETHER; ++t) total = total + weights[t];
        }
    }
    return sum(total);
}

// Softmax of ROWS rows over one split and their weighted values.
template <int ROWS, typename Piece>
void finish_rows(const Piece& piece, int64_t row, int64_t first, int64_t last,
                 const Partial& out) {
    float* scores = piece.scores + row * SCORES;
    const int64_t start = first / KEYS_TOGETHER * KEYS_TOGETHER;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) out.maxima[row + r] = largest(load(piece.highest + (row + r) * 16));
    for (int r = 0; r < ROWS; ++r)
        out.sums[row + r] = soften_row(piece, scores + r * SCORES, out.maxima[row + r], start, last);
    weigh_all<ROWS>(piece, row, first & ~int64_t(1), last, out.values);
}

}  // namespace
}  // namespace loire
