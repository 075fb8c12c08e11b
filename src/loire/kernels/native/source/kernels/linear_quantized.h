// x [T, in] times a weight [out, in] of 8 bits with a scale per output, the same bits for a row whatever
// the others are, and the same bits with every instruction set that has fused multiply-add.
//
// Each token's inputs are rounded to whole multiples of a scale per 32 of them (rounded_steps.h). Weights
// are (code - 128) * scale, code in 1..255. So each 32 inputs give a whole number that no order of
// additions changes; those, times their scales, are added in the order of the inputs, in one chain
// per output that starts at zero:
//     chain = fma(number, x's scale, chain); at the end times the output's scale
//
// The packed weight: panels of 32 outputs; in a panel, steps of 32 inputs; in a step, a lane of four
// bytes per output of 8 words with inputs (4 i, .., 4 i + 3); 1024 bytes.
// The packed activations: blocks of tokens, in a block steps, in a step token by token.

#pragma once

#include "linear.h"
#include "operations.h"
#include "rounded_steps.h"
#include "vec16.h"

namespace loire {
namespace {

// A block of sums in registers: tokens times vectors of 16 outputs. Two vectors share the inputs that
// are loaded for each token.
#if defined(LOIRE_AVX512)
constexpr int QUANTIZED_ROWS = 6, QUANTIZED_VECTORS = 2;
#elif defined(LOIRE_AVX2)
constexpr int QUANTIZED_ROWS = 3, QUANTIZED_VECTORS = 1;
#else
constexpr int QUANTIZED_ROWS = 2, QUANTIZED_VECTORS = 1;
#endif

// Codes of int8 weights are kept with their zero here, so that dot() can take them.
constexpr int INT8_ZERO = SIGNED_CODES ? 0 : 128;

// One step of one token.
struct QuantizedStep {
    int8_t x[STEP];
    float scale;
    int32_t start;  // of the number: minus the zero of the codes times the sum of x

    INLINE Int16 first_number() const { return broadcast_int(start); }
};

template <typename GivenElement>
struct QuantizedFormat {
    using Element = GivenElement;
    using Activation = QuantizedStep;
    using Head = NoHead;
    static constexpr int MOST_ROWS = QUANTIZED_ROWS, VECTORS = QUANTIZED_VECTORS;
    static constexpr int STREAMED_STEPS = 1;
    static constexpr bool IS_UNPACKED = false, EXACT_SCALES = false, HAS_FINE_INPUTS = false;
    static constexpr int64_t WORD_BYTES = PANEL * 4, WEIGHT_BYTES = PANEL * STEP;
    static constexpr int64_t ACTIVATIONS = 1;

    static INLINE void keep(const RoundedStep& rounded, Activation& step) {
        step.scale = rounded.scale;
        step.start = -INT8_ZERO * (rounded.sums[0] + rounded.sums[1]);
    }

    // One link of the chain: the number of a step.
    static INLINE void add_number(const Int16& number, const Activation& x, Vec16& chain) {
        chain = fma(to_floats(number), broadcast(x.scale), chain);
    }

    template <int ROWS, bool ONCE>
    static INLINE void step(Head, const char* weight, int64_t column, const char* ahead,
                            const Activation* x, Vec16 (&chains)[ROWS][VECTORS]) {
        Int16 numbers[ROWS][VECTORS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) numbers[r][v] = x[r].first_number();
#pragma GCC unroll 8
        for (int word = 0; word < 8; ++word) {
            fetch<WORD_BYTES, ONCE>(ahead + word * WORD_BYTES);
            Int16 codes[VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v)
                codes[v] = load_ints(weight + word * WORD_BYTES + column * 4 + v * 64);
            add_word<ROWS>(codes, word, x, numbers);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) add_number(numbers[r][v], x[r], chains[r][v]);
    }
};

}  // namespace
}  // namespace loire
