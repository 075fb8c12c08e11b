// x [T, in] times a weight [out, in] that keeps the blocks of a file (packed_blocks.h), the same bits
// for a row whatever the others are, and with every instruction set that has fused multiply-add.
//
// bfloat16: a token's inputs are rounded to whole numbers with a scale per 32, as in
// linear_quantized.h. Each group of 32 or 16 inputs gives a whole number that no order of additions
// changes. For each 32 inputs in their order, for its groups in theirs:
//     chain = fma(number * x's scale, weight's scale, chain)
//     chain = fma(sum of x's numbers * x's scale, weight's minimum, chain)      where there are such
// float32: inputs as they are, in their order:
//     chain = fma(x, value * scale + minimum, chain)
// The packed activations: blocks of tokens, in a block steps, in a step token by token.

#pragma once

#include "linear.h"
#include "linear_quantized.h"
#include "packed_blocks.h"

namespace loire {
namespace {

// 32 inputs of one token.
struct HalvedStep {
    int8_t x[STEP];
    float scale;
    int32_t sums[2];  // of x, of both halves

    INLINE void finish(float given_scale, float first_sum, float second_sum) {
        scale = given_scale;
        sums[0] = int32_t(first_sum), sums[1] = int32_t(second_sum);
    }
};

// What both ways of multiplying share.
template <typename GivenElement, typename Stored, typename GivenActivation, int64_t PER_PART>
struct BlocksFormat {
    using Element = GivenElement;
    using Activation = GivenActivation;
    using Packed = PackedBlocks<Stored>;
    using Codes = typename Packed::Codes;
    static constexpr int STREAMED_STEPS = 1;
    static constexpr int64_t WEIGHT_BYTES = Packed::BYTES, INPUTS = Stored::ELEMENTS;
    static constexpr int64_t ACTIVATIONS = PER_PART * Packed::PARTS_OF_STEP;
    static constexpr int GROUPS = Stored::GROUPS, WORDS = 8 / GROUPS;  // words of a group
};

// The codes of a word as dot() takes them, and which of those stands for zero.
template <typename Stored>
INLINE Int16 dot_codes(const char* lanes, int word) {
    const Int16 codes = PackedCodes<Stored::BITS>::load(lanes, word);
    if constexpr (Stored::HAS_TABLE) return look_up(Stored::TABLE, codes);
    return codes;
}
template <typename Stored>
constexpr int DOT_ZERO = Stored::HAS_TABLE ? (SIGNED_CODES ? 0 : 128)
                         : Stored::BITS == 8 && SIGNED_CODES ? 0
                                                             : Stored::ZERO;

template <typename Stored>
struct RoundedBlocks : BlocksFormat<bfloat16, Stored, HalvedStep, 1> {
    using Base = BlocksFormat<bfloat16, Stored, HalvedStep, 1>;
    using Packed = typename Base::Packed;
    static constexpr int MOST_ROWS = QUANTIZED_ROWS, VECTORS = QUANTIZED_VECTORS;
    static constexpr int GROUPS = Base::GROUPS, WORDS = Base::WORDS;
    static constexpr int64_t PARTS_OF_STEP = Packed::PARTS_OF_STEP;

    template <int ROWS, bool ONCE>
    static INLINE void step(const char* weight, int64_t column, const char* ahead,
                            const HalvedStep* x, Vec16 (&chains)[ROWS][VECTORS]) {
        fetch<Packed::HEAD_BYTES, ONCE>(ahead);
#pragma GCC unroll 1
        for (int64_t part = 0; part < PARTS_OF_STEP; ++part)
            one_part<ROWS, ONCE>(weight, Packed::part(weight, part), column,
                                 Packed::part(ahead, part), x + part, chains);
    }

    template <int ROWS, bool ONCE>
    static INLINE void one_part(const char* weight, const char* part, int64_t column,
                                const char* ahead, const HalvedStep* x,
                                Vec16 (&chains)[ROWS][VECTORS]) {
        constexpr int64_t FETCHED = Packed::Codes::BYTES / 8;
        const char* lanes = part + column * LANE;
#pragma GCC unroll 2
        for (int group = 0; group < GROUPS; ++group) {
            Int16 numbers[ROWS][VECTORS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const HalvedStep& token = x[r * PARTS_OF_STEP];
                const int32_t sum = GROUPS == 2 ? token.sums[group] : token.sums[0] + token.sums[1];
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v)
                    numbers[r][v] = broadcast_int(-DOT_ZERO<Stored> * sum);
            }
            // Words whose codes lie in the same bytes come together.
#pragma GCC unroll 8
            for (int i = 0; i < WORDS; ++i) {
                const int word = GROUPS == 2 ? group * 4 + i : i / 2 + i % 2 * 4;
                fetch<FETCHED, ONCE>(ahead + (group * WORDS + i) * FETCHED);
                Int16 codes[VECTORS];
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v)
                    codes[v] = dot_codes<Stored>(lanes + v * 64, word);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    int32_t four;
                    __builtin_memcpy(&four, x[r * PARTS_OF_STEP].x + 4 * word, 4);
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; ++v)
                        numbers[r][v] = dot(numbers[r][v], codes[v], four);
                }
            }
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v)
                add_numbers<ROWS>(weight, part, column + v * 16, group, v, x, numbers, chains);
        }
        fetch<Packed::PART_BYTES - Packed::Codes::BYTES, ONCE>(ahead + Packed::Codes::BYTES);
    }

    template <int ROWS>
    static INLINE void add_numbers(const char* weight, const char* part, int64_t output, int group,
                                   int v, const HalvedStep* x,
                                   const Int16 (&numbers)[ROWS][VECTORS],
                                   Vec16 (&chains)[ROWS][VECTORS]) {
        const Vec16 scales = Packed::beside(weight, part, 0, group, output);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            chains[r][v] = fma(to_floats(numbers[r][v]) * broadcast(x[r * PARTS_OF_STEP].scale),
                               scales, chains[r][v]);
        if constexpr (Stored::HAS_MINIMUM) {
            const Vec16 minimums = Packed::beside(weight, part, 1, group, output);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const HalvedStep& token = x[r * PARTS_OF_STEP];
                const int32_t sum = GROUPS == 2 ? token.sums[group] : token.sums[0] + token.sums[1];
                chains[r][v] = fma(broadcast(float(sum) * token.scale), minimums, chains[r][v]);
            }
        }
    }
};

// Made for exactness; few rows and vectors keep the code small.
template <typename Stored>
struct ExactBlocks : BlocksFormat<float, Stored, float, STEP> {
    using Base = BlocksFormat<float, Stored, float, STEP>;
    using Packed = typename Base::Packed;
    static constexpr int MOST_ROWS = 4, VECTORS = 1;
    static constexpr int GROUPS = Base::GROUPS, WORDS = Base::WORDS;

    template <int ROWS, bool ONCE>
    static INLINE void step(const char* weight, int64_t column, const char* ahead, const float* x,
                            Vec16 (&chains)[ROWS][VECTORS]) {
        fetch<Packed::BYTES, ONCE>(ahead);
#pragma GCC unroll 1
        for (int64_t p = 0; p < Packed::PARTS_OF_STEP; ++p) {
            const char* part = Packed::part(weight, p);
#pragma GCC unroll 1
            for (int word = 0; word < 8; ++word) {
                const int group = word / WORDS;
                const Vec16 scales = Packed::beside(weight, part, 0, group, column);
                const Int16 codes = dot_codes<Stored>(part + column * LANE, word);
#pragma GCC unroll 4
                for (int byte = 0; byte < 4; ++byte) {
                    Int16 value;
                    EACH_PART value.part[p] = SIGNED_CODES
                        ? (codes.part[p] << (24 - 8 * byte)) >> 24
                        : (Ints)((Words)codes.part[p] >> (8 * byte)) & 255;
                    Vec16 number = to_floats(value + broadcast_int(-DOT_ZERO<Stored>)) * scales;
                    if constexpr (Stored::HAS_MINIMUM)
                        number = number + Packed::beside(weight, part, 1, group, column);
#pragma GCC unroll 4
                    for (int r = 0; r < ROWS; ++r)
                        chains[r][0] = fma(x[r * Base::ACTIVATIONS + p * STEP + 4 * word + byte],
                                           number, chains[r][0]);
                }
            }
        }
    }
};

// One block of tokens. Their inputs fill whole blocks of the weight.
template <typename Format>
void blocks_activations_piece(const void* untyped, int64_t piece, Scratch&) {
    using Element = typename Format::Element;
    const auto& a = *static_cast<const PackActivationsArguments*>(untyped);
    const int64_t first = piece * a.tokens_per_block, left = a.tokens - first;
    const int64_t rows = left < a.tokens_per_block ? left : a.tokens_per_block;
    for (int64_t r = 0; r < rows; ++r) {
        const Element* x = static_cast<const Element*>(a.x) + (first + r) * a.in_features;
        auto* packed = static_cast<typename Format::Activation*>(a.packed) +
                       (first * a.steps + r) * Format::ACTIVATIONS;
        for (int64_t step = 0; step < a.steps; ++step, packed += rows * Format::ACTIVATIONS)
            for (int64_t part = 0; part < Format::INPUTS / STEP; ++part, x += STEP) {
                if constexpr (sizeof(Element) == 4) {
                    __builtin_memcpy(packed + part * STEP, x, STEP * sizeof(float));
                } else {
                    const Vec16 halves[2] = {load(x), load(x + 16)};
                    quantize_step(halves, packed[part]);
                }
            }
    }
}

}  // namespace
}  // namespace loire
