// Keys of attention, transposed 16 at a time, and how they are multiplied with queries: a lane per
// key, one chain over the head's dimensions in each.

#pragma once

#include "vec16.h"

namespace loire {
namespace {

// tile[w * stride + lane] = word w of rows[lane].
INLINE void transpose(const char* const* rows, int64_t words, float* tile, int64_t stride) {
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
            _mm512_storeu_si512(tile + (w + i) * stride,
                                _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
            _mm512_storeu_si512(tile + (w + i + 8) * stride,
                                _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
            _mm512_storeu_si512(tile + (w + i + 4) * stride,
                                _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
            _mm512_storeu_si512(tile + (w + i + 12) * stride,
                                _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
        }
    }
#else
    for (int lane = 0; lane < 16; ++lane)
        for (int64_t w = 0; w < words; ++w)
            __builtin_memcpy(tile + w * stride + lane, rows[lane] + w * 4, 4);
#endif
}

// How queries are kept and multiplied with transposed keys: those of ROWS rows that are scored together
// lie word by word. A bfloat16 word holds dimensions (2 w, 2 w + 1); the upper one comes first in the
// chain, as VDPBF16PS has it.
struct Float32Scores {
    using Query = float;
    static constexpr int PER_WORD = 1;
    static int64_t words(int64_t head_dim) { return head_dim; }
    static int64_t queries(int64_t head_dim) { return head_dim; }

    // One row's; the next of its numbers lies `rows` further.
    static INLINE void keep(const float* head, int64_t head_dim, int64_t rows, float* query) {
        for (int64_t i = 0; i < head_dim; ++i) query[i * rows] = head[i];
    }

    // queries: those of a word.
    template <int ROWS>
    static INLINE void link(const Vec16& keys, const float* queries, Vec16 (&scores)[ROWS]) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) scores[r] = fma(queries[r], keys, scores[r]);
    }
};

struct BFloat16Scores {
    static int64_t words(int64_t head_dim) { return head_dim / 2; }
#if defined(LOIRE_AVX512_BF16)
    using Query = uint32_t;
    static constexpr int PER_WORD = 1;
    static int64_t queries(int64_t head_dim) { return head_dim / 2; }

    static INLINE void keep(const bfloat16* head, int64_t head_dim, int64_t rows, uint32_t* query) {
        for (int64_t w = 0; w < head_dim / 2; ++w)
            __builtin_memcpy(query + w * rows, head + 2 * w, sizeof(uint32_t));
    }

    template <int ROWS>
    static INLINE void link(const Vec16& keys, const uint32_t* queries, Vec16 (&scores)[ROWS]) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            scores[r].part[0] = _mm512_dpbf16_ps(scores[r].part[0],
                                                 (__m512bh)_mm512_set1_epi32(int(queries[r])),
                                                 (__m512bh)keys.part[0]);
    }
#else
    using Query = float;
    static constexpr int PER_WORD = 2;
    static int64_t queries(int64_t head_dim) { return head_dim; }

    static INLINE void keep(const bfloat16* head, int64_t head_dim, int64_t rows, float* query) {
        for (int64_t i = 0; i < head_dim; ++i) {
            const uint32_t bits = uint32_t(head[i].bits) << 16;
            __builtin_memcpy(query + i * rows, &bits, sizeof(bits));
        }
    }

    template <int ROWS>
    static INLINE void link(const Vec16& keys, const float* queries, Vec16 (&scores)[ROWS]) {
        const Vec16 upper = upper_halves(keys), lower = lower_halves(keys);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            scores[r] = fma(queries[ROWS + r], upper, scores[r]);
            scores[r] = fma(queries[r], lower, scores[r]);
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
