// x [T, in] times a weight [out, in] whose codes are numbers in FP8 (e4m3), in blocks of packed_blocks.h with
// a float as their scale: the same bits for a row whatever the others are, and with every instruction
// set that has fused multiply-add.
//
// Inputs are taken as they are, as are the codes: bfloat16 holds each of them exactly. For each block of
// inputs, four of them after the other, each four in the order 2, 0, 3, 1:
//     number = fma(x, code, number), from zero on
//     chain = fma(number, scale, chain)
// (In this order two shifts bring a word's four codes into the upper bytes of halves. VDPBF16PS adds
// the product of the upper halves, then that of the lower ones: two links, as in linear.h.)
//
// A few tokens take the codes as they come from memory. For more, a step of a panel is widened first, and
// all of them pass over that while it is in the L1 cache: as words of two bfloat16 for VDPBF16PS, else
// as floats, input by input. The packed activations, block by block of tokens and step by step, token by
// token, are words of the inputs (4 i + 2, 4 i), then (4 i + 3, 4 i + 1), or floats in that order.

#pragma once

#include "linear.h"
#include "packed_blocks.h"

namespace loire {
namespace {

#if defined(LOIRE_AVX512_BF16)
constexpr bool HAS_PAIRS = true;

// What mantissas stand for where the exponent is 0: multiples of 2^-9, as bfloat16.
alignas(64) constexpr uint16_t DENORMAL[32] = {0,      0x3b00, 0x3b80, 0x3bc0,
                                               0x3c00, 0x3c20, 0x3c40, 0x3c60};

// The numbers of codes in the upper bytes of halves, as bfloat16. The lower five bits of each half of
// `index` are those of its code.
INLINE __m512i widen_halves(__m512i halves, __m512i index) {
    const __m512i rest = _mm512_and_si512(halves, _mm512_set1_epi16(0x7f00));
    const __m512i normal =
        _mm512_add_epi16(_mm512_srli_epi16(rest, 4), _mm512_set1_epi16(120 << 7));
    const __mmask32 small = _mm512_testn_epi16_mask(halves, _mm512_set1_epi16(0x7800));
    const __m512i magnitude =
        _mm512_mask_permutexvar_epi16(normal, small, index, _mm512_load_si512(DENORMAL));
    constexpr int FIRST_AND_SECOND_OR_THIRD = 0xea;
    return _mm512_ternarylogic_epi32(halves, _mm512_set1_epi16(int16_t(0x8000)), magnitude,
                                     FIRST_AND_SECOND_OR_THIRD);
}
#else
constexpr bool HAS_PAIRS = false;
#endif

// What the inputs of a word, four of each output, are multiplied with: one of these for each link that
// VDPBF16PS or fma adds.
template <bool IN_PAIRS>
struct WideWord {
    static constexpr int LINKS = 4;
    Vec16 link[LINKS];

    INLINE explicit WideWord(const Int16& codes) {
        constexpr int ORDER[LINKS] = {2, 0, 3, 1};
#pragma GCC unroll 4
        for (int i = 0; i < LINKS; ++i) {
            Int16 lowest;
            EACH_PART lowest.part[p] = (Ints)((Words)codes.part[p] >> (8 * ORDER[i]));
            link[i] = float8_numbers(lowest);
        }
    }
    static INLINE Vec16 add(const Vec16& number, float x, const Vec16& weight) {
        return fma(x, weight, number);
    }
    static INLINE void order(const float* x, float* packed) {
        packed[0] = x[2], packed[1] = x[0], packed[2] = x[3], packed[3] = x[1];
    }
    static INLINE void order(const bfloat16* x, float* packed) {
        float wide[4];
        for (int i = 0; i < 4; ++i) {
            const uint32_t bits = uint32_t(x[i].bits) << 16;
            __builtin_memcpy(wide + i, &bits, sizeof(bits));
        }
        order(wide, packed);
    }
};

#if defined(LOIRE_AVX512_BF16)
template <>
struct WideWord<true> {
    static constexpr int LINKS = 2;
    Vec16 link[LINKS];

    INLINE explicit WideWord(const Int16& codes) {
        const auto four = (__m512i)codes.part[0];
        link[0].part[0] = (Floats)widen_halves(_mm512_slli_epi32(four, 8), four);
        link[1].part[0] = (Floats)widen_halves(four, _mm512_srli_epi32(four, 8));
    }
    static INLINE Vec16 add(const Vec16& number, uint32_t x, const Vec16& weight) {
        return {{_mm512_dpbf16_ps(number.part[0], (__m512bh)_mm512_set1_epi32(int(x)),
                                  (__m512bh)weight.part[0])}};
    }
    static INLINE void order(const bfloat16* x, uint32_t* packed) {
        packed[0] = uint32_t(x[2].bits) << 16 | x[0].bits;
        packed[1] = uint32_t(x[3].bits) << 16 | x[1].bits;
    }
};
#endif

template <typename GivenElement, typename Stored>
struct Float8Blocks {
    using Element = GivenElement;
    using Packed = PackedBlocks<Stored>;
    static constexpr bool IN_PAIRS = HAS_PAIRS && sizeof(Element) == 2;
    using Wide = WideWord<IN_PAIRS>;
    using Activation = Either<IN_PAIRS, uint32_t, float>;
    using Head = NoHead;
    static constexpr int MOST_ROWS = DENSE_ROWS, VECTORS = DENSE_VECTORS, STREAMED_STEPS = 1;
    static constexpr bool IS_UNPACKED = true;
    static constexpr int64_t WEIGHT_BYTES = Packed::BYTES, INPUTS = Stored::ELEMENTS;
    static constexpr int64_t WORDS_OF_STEP = INPUTS / 4, ACTIVATIONS = WORDS_OF_STEP * Wide::LINKS;

    // The chains of a step, whose words `wide(word, vector)` gives.
    template <int ROWS, typename Word>
    static INLINE void chain(const char* head, int64_t column, const Activation* x, Word wide,
                             Vec16 (&chains)[ROWS][VECTORS]) {
        Vec16 numbers[ROWS][VECTORS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) numbers[r][v] = zero();
#pragma GCC unroll 2
        for (int64_t word = 0; word < WORDS_OF_STEP; ++word)
            wide(word, [&](int link, const Vec16 (&weights)[VECTORS])
                           __attribute__((always_inline)) {
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    const Activation given = x[r * ACTIVATIONS + word * Wide::LINKS + link];
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; ++v)
                        numbers[r][v] = Wide::add(numbers[r][v], given, weights[v]);
                }
            });
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            const Vec16 scales = Packed::beside(head, nullptr, 0, 0, column + v * 16);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
                chains[r][v] = fma(numbers[r][v], scales, chains[r][v]);
        }
    }

    template <int ROWS, bool ONCE>
    static INLINE void step(Head, const char* weight, int64_t column, const char* ahead,
                            const Activation* x, Vec16 (&chains)[ROWS][VECTORS]) {
        fetch<Packed::HEAD_BYTES, ONCE>(ahead);
        const char* words = Packed::part(weight, 0) + column * LANE;
        const char* next = Packed::part(ahead, 0);
        const auto wide = [&](int64_t word, auto add) __attribute__((always_inline)) {
            fetch<WORD_BYTES, ONCE>(next + word * WORD_BYTES);
            Vec16 links[Wide::LINKS][VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) {
                const Wide found(load_ints(words + word * WORD_BYTES + v * 64));
#pragma GCC unroll 4
                for (int i = 0; i < Wide::LINKS; ++i) links[i][v] = found.link[i];
            }
#pragma GCC unroll 4
            for (int i = 0; i < Wide::LINKS; ++i) add(i, links[i]);
        };
        chain<ROWS>(weight, column, x, wide, chains);
    }

    // All steps of one panel for many tokens, in blocks.
    static void multiply_many(const char* panel, const char* activations, int64_t tokens,
                              int64_t block, int64_t steps, float* sums,
                              FetchedPanels& added);
};

// A step of a panel, widened.
template <typename Narrow>
struct WidenedFloat8 {
    using Activation = typename Narrow::Activation;
    using Head = NoHead;
    using Packed = typename Narrow::Packed;
    static constexpr int VECTORS = Narrow::VECTORS, STREAMED_STEPS = 1, LINKS = Narrow::Wide::LINKS;
    static constexpr int64_t LINK_BYTES = PANEL * 4, ACTIVATIONS = Narrow::ACTIVATIONS;
    static constexpr int64_t WEIGHT_BYTES =
        Packed::HEAD_BYTES + Narrow::WORDS_OF_STEP * LINKS * LINK_BYTES;

    static void widen(const char* weight, char* target) {
        __builtin_memcpy(target, weight, Packed::HEAD_BYTES);
        fetch<Packed::HEAD_BYTES, false>(weight + Narrow::WEIGHT_BYTES);
        const char* words = Packed::part(weight, 0);
        char* links = target + Packed::HEAD_BYTES;
        for (int64_t word = 0; word < Narrow::WORDS_OF_STEP; ++word, words += WORD_BYTES) {
            fetch<WORD_BYTES, false>(words + Narrow::WEIGHT_BYTES);
            for (int64_t output = 0; output < PANEL; output += 16) {
                const typename Narrow::Wide found(load_ints(words + output * LANE));
                for (int i = 0; i < LINKS; ++i)
                    store(reinterpret_cast<float*>(links + (word * LINKS + i) * LINK_BYTES) +
                              output,
                          found.link[i]);
            }
        }
    }

    template <int ROWS, bool ONCE>
    static INLINE void step(Head, const char* weight, int64_t column, const char*, const Activation* x,
                            Vec16 (&chains)[ROWS][VECTORS]) {
        const char* links = weight + Packed::HEAD_BYTES + column * 4;
        const auto wide = [&](int64_t word, auto add) __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int i = 0; i < LINKS; ++i) {
                Vec16 weights[VECTORS];
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v)
                    weights[v] = load(reinterpret_cast<const float*>(
                                          links + (word * LINKS + i) * LINK_BYTES) +
                                      v * 16);
                add(i, weights);
            }
        };
        Narrow::template chain<ROWS>(weight, column, x, wide, chains);
    }
};

template <typename Element, typename Stored>
void Float8Blocks<Element, Stored>::multiply_many(const char* panel, const char* activations,
                                                  int64_t tokens, int64_t block, int64_t steps,
                                                  float* sums, FetchedPanels& added) {
    using Widened = WidenedFloat8<Float8Blocks>;
    constexpr int64_t ACTIVATION_BYTES = ACTIVATIONS * int64_t(sizeof(Activation));
    alignas(64) char widened[Widened::WEIGHT_BYTES];
    for (int64_t step = 0; step < steps; ++step) {
        Widened::widen(panel + step * WEIGHT_BYTES, widened);
        for (int64_t t = 0; t < tokens; t += block, added.go_on())
            for_count<MOST_ROWS>(tokens - t < block ? tokens - t : block, [&](auto rows) {
                for (int column = 0; column < PANEL; column += VECTORS * 16)
                    multiply<Widened, rows.value, false>(
                        widened, widened, column,
                        activations + (t * steps + rows.value * step) * ACTIVATION_BYTES, 1, 0,
                        sums + t * PANEL + column);
            });
    }
}

// One block of tokens. Their inputs fill whole blocks of the weight.
template <typename Format>
void float8_activations_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const PackActivationsArguments*>(untyped);
    for_rows_of_piece<Format>(a, piece, [&](const auto* x, auto* packed, int64_t rows) {
        for (int64_t step = 0; step < a.steps; ++step, packed += rows * Format::ACTIVATIONS)
            for (int64_t word = 0; word < Format::WORDS_OF_STEP; ++word, x += 4)
                Format::Wide::order(x, packed + word * Format::Wide::LINKS);
    });
}

}  // namespace
}  // namespace loire
