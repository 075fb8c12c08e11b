// x [T, in] times a weight [out, in] that keeps the blocks of a file (packed_blocks.h), the same bits
// for a row whatever the others are, and with every instruction set that has fused multiply-add.
//
// bfloat16: a token's inputs are rounded to whole numbers with a scale per 32 (rounded_steps.h), which
// is a multiple (1, 1.125 .. 1.875; any, where the weight's scales are powers of two) of a power of
// two, the unit. Each group of 32 or 16 inputs gives a
// whole number that no order of additions changes. (Where weights have two bits or come from IQ3's
// tables, models mind rounding more: their inputs are fine, of which upper places are added up first,
// and lower ones to eight times that.) For each 32 inputs in their order, for its groups in theirs:
//     chain = fma(number * x's unit, weight's scale * x's multiple, chain)
//     chain = fma(sum of x's numbers * x's scale, weight's minimum, chain)      where there are such
// Few tokens meet the codes as they come from memory, many meet them unpacked (unpacked_blocks.h).
// float32: inputs as they are, in their order:
//     chain = fma(x, value * scale + minimum, chain)
// The packed activations: blocks of tokens, in a block 32 inputs (float32: steps) after 32, of those token by token.

#pragma once

#include "linear.h"
#include "linear_quantized.h"
#include "packed_blocks.h"
#include "unpacked_blocks.h"

namespace loire {
namespace {

// What both ways of multiplying share.
template <typename GivenElement, typename Stored, typename GivenActivation, int64_t PER_PART,
          int GIVEN_VECTORS>
struct BlocksFormat {
    using Element = GivenElement;
    using Activation = GivenActivation;
    using Packed = PackedBlocks<Stored>;
    using Codes = typename Packed::Codes;
    using Head = Meanings<Stored, GIVEN_VECTORS>;
    static constexpr int STREAMED_STEPS = 1, VECTORS = GIVEN_VECTORS;
    static constexpr int64_t WEIGHT_BYTES = Packed::BYTES, INPUTS = Stored::ELEMENTS;
    static constexpr int64_t ACTIVATIONS = PER_PART * Packed::PARTS_OF_STEP;
    static constexpr int GROUPS = Stored::GROUPS, WORDS = 8 / GROUPS;  // words of a group
};

template <typename Stored>
using StepOf = BlockStep<Stored::GROUPS, Stored::HAS_MINIMUM, Stored::HAS_POWERS,
                         Stored::HAS_FINE_INPUTS>;

template <typename Element, typename Stored>
struct RoundedBlocks : BlocksFormat<Element, Stored, StepOf<Stored>, 1, QUANTIZED_VECTORS> {
    using Step = StepOf<Stored>;
    using Base = BlocksFormat<Element, Stored, Step, 1, QUANTIZED_VECTORS>;
    static constexpr bool IS_UNPACKED = true, EXACT_SCALES = Stored::HAS_POWERS;
    static constexpr bool HAS_FINE_INPUTS = Stored::HAS_FINE_INPUTS;
    using Packed = typename Base::Packed;
    using Head = typename Base::Head;
    static constexpr int MOST_ROWS = QUANTIZED_ROWS, VECTORS = Base::VECTORS;
    static constexpr int GROUPS = Base::GROUPS, WORDS = Base::WORDS;

    template <int ROWS, bool ONCE>
    static INLINE void step(Head head, const char* weight, int64_t column,
                            const char* ahead, const Step* x, Vec16 (&chains)[ROWS][VECTORS]) {
        fetch<Packed::HEAD_BYTES, ONCE>(ahead);
#pragma GCC unroll 1
        for (int64_t part = 0; part < Packed::PARTS_OF_STEP; ++part)
            one_part<ROWS, ONCE>(head, weight, Packed::part(weight, part), column,
                                 Packed::part(ahead, part), x + part * ROWS, chains);
    }

    template <int ROWS, bool ONCE>
    static INLINE void one_part(Head head, const char* weight, const char* part,
                                int64_t column, const char* ahead, const Step* x,
                                Vec16 (&chains)[ROWS][VECTORS]) {
        constexpr int64_t FETCHED = Packed::Codes::BYTES / 8;
        const char* lanes = part + column * LANE;
#pragma GCC unroll 2
        for (int group = 0; group < GROUPS; ++group) {
            Int16 numbers[ROWS][VECTORS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v) numbers[r][v] = x[r].first_number(group);
            // Words whose codes lie in the same bytes come together.
            const auto word_at = [&](int i) { return GROUPS == 2 ? group * 4 + i : i / 2 + i % 2 * 4; };
            Int16 codes[WORDS][VECTORS];
#pragma GCC unroll 8
            for (int i = 0; i < WORDS; ++i) {
                fetch<FETCHED, ONCE>(ahead + (group * WORDS + i) * FETCHED);
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v)
                    codes[i][v] = head.codes(v, lanes + v * 64, word_at(i));
                add_word<ROWS>(codes[i], word_at(i), x, numbers);
            }
            if constexpr (HAS_FINE_INPUTS) {
                to_lower_place(numbers);
#pragma GCC unroll 8
                for (int i = 0; i < WORDS; ++i) add_word<ROWS>(codes[i], 8 + word_at(i), x, numbers);
            }
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v)
                add_numbers<ROWS>(weight, part, column + v * 16, group, v, x, numbers, chains);
        }
        fetch<Packed::PART_BYTES - Packed::Codes::BYTES, ONCE>(ahead + Packed::Codes::BYTES);
    }

    template <int ROWS>
    static INLINE void add_numbers(const char* weight, const char* part, int64_t output, int group,
                                   int v, const Step* x, const Int16 (&numbers)[ROWS][VECTORS],
                                   Vec16 (&chains)[ROWS][VECTORS]) {
        const Vec16 scales = Packed::beside(weight, part, 0, group, output);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            chains[r][v] = fma(x[r].in_units(numbers[r][v]), scales * broadcast(x[r].multiple),
                               chains[r][v]);
        if constexpr (Stored::HAS_MINIMUM) {
            const Vec16 minimums = Packed::beside(weight, part, 1, group, output);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
                chains[r][v] = fma(broadcast(x[r].sums[group]), minimums, chains[r][v]);
        }
    }

    static void multiply_many(const char* panel, const char* activations, int64_t tokens,
                              int64_t block, int64_t steps, float* sums,
                              FetchedPanels& added) {
        multiply_panel_unpacked<Stored, MOST_ROWS, VECTORS>(panel, activations, tokens, block, steps,
                                                            sums, added);
    }

    static INLINE void keep(const RoundedStep& rounded, Step& step) {
        step.template keep<DOT_ZERO<Stored>>(rounded);
    }
};

// Weights that were rounded to four bits, packed as if they had come as blocks: a bfloat16 per 32.
struct Int4 : Layout<18, 32, 4, 8> {
    static constexpr ScaleKind SCALE = ScaleKind::BFLOAT16;
};

// Made for exactness; few rows and vectors keep the code small.
template <typename Stored>
struct ExactBlocks : BlocksFormat<float, Stored, float, STEP, 1> {
    using Base = BlocksFormat<float, Stored, float, STEP, 1>;
    using Packed = typename Base::Packed;
    using Head = typename Base::Head;
    static constexpr bool IS_UNPACKED = false;
    static constexpr int MOST_ROWS = 4, VECTORS = Base::VECTORS;
    static constexpr int GROUPS = Base::GROUPS, WORDS = Base::WORDS;

    template <int ROWS, bool ONCE>
    static INLINE void step(Head head, const char* weight, int64_t column,
                            const char* ahead, const float* x, Vec16 (&chains)[ROWS][VECTORS]) {
        fetch<Packed::BYTES, ONCE>(ahead);
#pragma GCC unroll 1
        for (int64_t p = 0; p < Packed::PARTS_OF_STEP; ++p) {
            const char* part = Packed::part(weight, p);
#pragma GCC unroll 1
            for (int word = 0; word < 8; ++word) {
                const int group = word / WORDS;
                const Vec16 scales = Packed::beside(weight, part, 0, group, column);
                const Int16 codes = head.codes(0, part + column * LANE, word);
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
template <typename Stored>
void exact_activations_piece(const void* untyped, int64_t piece, Scratch&) {
    constexpr int64_t INPUTS = Stored::ELEMENTS;
    const auto& a = *static_cast<const PackActivationsArguments*>(untyped);
    const int64_t first = piece * a.tokens_per_block, left = a.tokens - first;
    const int64_t rows = left < a.tokens_per_block ? left : a.tokens_per_block;
    auto* packed = static_cast<float*>(a.packed) + first * a.in_features;
    for (int64_t r = 0; r < rows; ++r) {
        const float* x = static_cast<const float*>(a.x) + (first + r) * a.in_features;
        for (int64_t step = 0; step < a.steps; ++step)
            __builtin_memcpy(packed + (step * rows + r) * INPUTS, x + step * INPUTS,
                             INPUTS * sizeof(float));
    }
}

#if defined(LOIRE_AMX)
template <typename Format>
void block_tiles_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& a = *static_cast<const LinearArguments*>(untyped);
    if (a.tokens_per_block < TILE_TOKENS) return linear_piece<Format>(untyped, piece, scratch);
    Tiles::configure_bytes();
    linear_piece<Format>(untyped, piece, scratch);
    Tiles::release();
}
#endif

}  // namespace
}  // namespace loire
