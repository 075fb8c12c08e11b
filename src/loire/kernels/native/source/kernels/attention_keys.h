// Keys of attention, transposed 16 at a time, and how they are multiplied with queries: a lane per
// key, one chain over the head's dimensions in each.

#pragma once

#include "vec16.h"

namespace loire {
namespace {

// tile[w][lane] = word w of rows[lane].
INLINE void transpose(const char* const* rows, int64_t words, float* tile) {
#if defined(LOIRE_AVX512)
    for (int64_t w = 0; w < words; w += 16) {
        const __mmask16 mask = words - w >= 16 ? 0xffff : (1u << (words - w)) - 1;
        __m512i r[16], t[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) r[i] = _mm512_maskz_loadu_epi32(mask, rows[i] + w * 4);
#pragma GCC unroll 8
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 16; i += 4) {
            r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
            r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
            r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
            t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
            t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
            t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            _mm512_storeu_si512(tile + (w + i) * 16, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
            _mm512_storeu_si512(tile + (w + i + 8) * 16,
                                _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
            _mm512_storeu_si512(tile + (w + i + 4) * 16,
                                _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
            _mm512_storeu_si512(tile + (w + i + 12) * 16,
                                _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
        }
    }
#else
    for (int lane = 0; lane < 16; ++lane)
        for (int64_t w = 0; w < words; ++w)
            __builtin_memcpy(tile + w * 16 + lane, rows[lane] + w * 4, 4);
#endif
}

// How queries are kept and multiplied with transposed keys. A bfloat16 word holds dimensions
// (2 w, 2 w + 1); the upper one comes first in the chain, as VDPBF16PS has it.
struct Float32Scores {
    using Query = float;
    static int64_t words(int64_t head_dim) { return head_dim; }
    static int64_t queries(int64_t head_dim) { return head_dim; }

    static INLINE void keep(const float* head, int64_t head_dim, float* query) {
        __builtin_memcpy(query, head, head_dim * sizeof(float));
    }

    template <int ROWS>
    static INLINE void link(const Vec16& keys, const float* queries, int64_t stride, int64_t word,
                            Vec16 (&scores)[ROWS]) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            scores[r] = fma(queries[r * stride + word], keys, scores[r]);
    }
};

struct BFloat16Scores {
    static int64_t words(int64_t head_dim) { return head_dim / 2; }
#if defined(LOIRE_AVX512_BF16)
    using Query = uint32_t;
    static int64_t queries(int64_t head_dim) { return head_dim / 2; }

    static INLINE void keep(const bfloat16* head, int64_t head_dim, uint32_t* query) {
        __builtin_memcpy(query, head, head_dim * sizeof(bfloat16));
    }

    template <int ROWS>
    static INLINE void link(const Vec16& keys, const uint32_t* queries, int64_t stride,
                            int64_t word, Vec16 (&scores)[ROWS]) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            scores[r].part[0] = _mm512_dpbf16_ps(
                scores[r].part[0], (__m512bh)_mm512_set1_epi32(int(queries[r * stride + word])),
                (__m512bh)keys.part[0]);
    }
#else
    using Query = float;
    static int64_t queries(int64_t head_dim) { return head_dim; }

    static INLINE void keep(const bfloat16* head, int64_t head_dim, float* query) {
        for (int64_t i = 0; i < head_dim; i += 16)
            store_some(query + i, load_some(head + i, head_dim - i), head_dim - i);
    }

    template <int ROWS>
    static INLINE void link(const Vec16& keys, const float* queries, int64_t stride, int64_t word,
                            Vec16 (&scores)[ROWS]) {
        const Vec16 upper = upper_halves(keys), lower = lower_halves(keys);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const float* query = queries + r * stride + 2 * word;
            scores[r] = fma(query[1], upper, scores[r]);
            scores[r] = fma(query[0], lower, scores[r]);
        }
    }
#endif
};

template <typename Element>
struct ScoresOf {
    using Type = Float32Scores;
};
template <>
struct ScoresOf<bfloat16> {
    using Type = BFloat16Scores;
};

}  // namespace
}  // namespace loire
