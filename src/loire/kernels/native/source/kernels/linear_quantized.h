// x [T, in] times a quantized weight [out, in], the same bits for a row whatever the others are, and
// the same bits with every instruction set that has fused multiply-add.
//
// Each token's inputs are rounded to whole multiples of a scale per 32 of them,
//     scale = largest magnitude / 127,   x = round(input * (127 / largest magnitude)),
// as in llama.cpp's Q8_0. Weights are
//     int8   (code - 128) * scale of the output,          code in 1..255
//     int4   (code - 8) * scale of 32 inputs (bfloat16),  code in 0..15
//     q4_1   code * scale + minimum of 32 inputs (both half precision), code in 0..15, as GGUF stores it
// So each 32 inputs give a whole number that no order of additions changes; those, times their
// scales, are added in the order of the inputs, in one chain per output that starts at zero:
//     int8   chain = fma(number, x's scale, chain); at the end times the output's scale
//     int4   chain = fma(number * x's scale, weight's scale, chain)
//     q4_1   the same, then chain = fma(sum of x's numbers * x's scale, minimum, chain)
//
// The packed weight: panels of 32 outputs; in a panel, steps of 32 inputs; in a step, a lane of four
// bytes per output of
//     int8   8 words with inputs (4 i, .., 4 i + 3); 1024 bytes
//     int4   4 words that hold inputs (4 i, .., 4 i + 3) in the lower halves of their bytes and
//            16 inputs later in the upper ones; then the 32 scales; 576 bytes
//     q4_1   the same and then the 32 minimums; 640 bytes
// The packed activations: blocks of tokens, in a block steps, in a step token by token.

#pragma once

#include "linear.h"
#include "operations.h"
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

// One step of one token; the codes of weights have a zero.
template <int ZERO>
struct QuantizedStep {
    int8_t x[STEP];
    float scale;
    int32_t start;  // of the number: minus the zero of the codes times the sum of x

    INLINE void finish(float given_scale, float first_sum, float second_sum) {
        scale = given_scale;
        start = -ZERO * int32_t(first_sum + second_sum);
    }
    INLINE Int16 first_number() const { return broadcast_int(start); }
};

// The same where weights have minimums.
struct SummedStep {
    int8_t x[STEP];
    float scale;
    float sum;  // of x, times the scale

    INLINE void finish(float given_scale, float first_sum, float second_sum) {
        scale = given_scale;
        sum = (first_sum + second_sum) * given_scale;
    }
    INLINE Int16 first_number() const { return broadcast_int(0); }
};

// Two codes of four bits in each byte, as bytes.
INLINE void split_codes(const Int16& both, Int16& lower, Int16& upper) {
    EACH_PART {
        lower.part[p] = both.part[p] & 0x0f0f0f0f;
        upper.part[p] = (Ints)((Words)both.part[p] >> 4) & 0x0f0f0f0f;
    }
}

// Which scales a weight has beside its codes.
enum class Scales { PER_OUTPUT, PER_STEP, AND_MINIMUM };

template <typename GivenElement, int BITS, Scales SCALES>
struct QuantizedFormat {
    using Element = GivenElement;
    static constexpr bool HAS_MINIMUM = SCALES == Scales::AND_MINIMUM;
    using Activation = Either<HAS_MINIMUM, SummedStep, QuantizedStep<BITS == 8 ? INT8_ZERO : 8>>;
    static constexpr int MOST_ROWS = QUANTIZED_ROWS, VECTORS = QUANTIZED_VECTORS;
    static constexpr int STREAMED_STEPS = 1;
    static constexpr int64_t WORD_BYTES = PANEL * 4;
    static constexpr int64_t CODE_BYTES = PANEL * STEP * BITS / 8;
    static constexpr int64_t WEIGHT_BYTES = CODE_BYTES + PANEL * 2 * int(SCALES);
    static constexpr int64_t ACTIVATIONS = 1;

    template <int ROWS>
    static INLINE void add(const Int16 (&codes)[VECTORS], int word, const Activation* x,
                           Int16 (&numbers)[ROWS][VECTORS]) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            int32_t four;
            __builtin_memcpy(&four, x[r].x + 4 * word, 4);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) numbers[r][v] = dot(numbers[r][v], codes[v], four);
        }
    }

    // What a weight has beside its codes, of 16 outputs.
    struct Beside {
        Vec16 scales, minimums;  // where there are such
    };

    static INLINE Beside beside(const char* weight, int64_t output) {
        Beside found{zero(), zero()};
        if constexpr (SCALES != Scales::PER_OUTPUT) found.scales = beside_codes(weight, output);
        if constexpr (HAS_MINIMUM) found.minimums = beside_codes(weight, PANEL + output);
        return found;
    }

    // One link of the chain: the number of a step.
    static INLINE void add_number(const Int16& whole, const Activation& x, const Beside& beside,
                                  Vec16& chain) {
        const Vec16 number = to_floats(whole), scale = broadcast(x.scale);
        if constexpr (SCALES == Scales::PER_OUTPUT) chain = fma(number, scale, chain);
        else chain = fma(number * scale, beside.scales, chain);
        if constexpr (HAS_MINIMUM) chain = fma(broadcast(x.sum), beside.minimums, chain);
    }

    // Scales or minimums of the vector that begins at an output.
    static INLINE Vec16 beside_codes(const char* weight, int64_t output) {
        const char* found = weight + CODE_BYTES + output * 2;
        return HAS_MINIMUM ? load_halves(found) : load(reinterpret_cast<const bfloat16*>(found));
    }

    template <int ROWS, bool ONCE>
    static INLINE void step(const char* weight, int64_t column, const char* ahead,
                            const Activation* x, Vec16 (&chains)[ROWS][VECTORS]) {
        Int16 numbers[ROWS][VECTORS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) numbers[r][v] = x[r].first_number();
#pragma GCC unroll 8
        for (int word = 0; word < CODE_BYTES / WORD_BYTES; ++word) {
            fetch<WORD_BYTES, ONCE>(ahead + word * WORD_BYTES);
            Int16 codes[VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v)
                codes[v] = load_ints(weight + word * WORD_BYTES + column * 4 + v * 64);
            if constexpr (BITS == 8) {
                add<ROWS>(codes, word, x, numbers);
            } else {
                Int16 lower[VECTORS], upper[VECTORS];
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v) split_codes(codes[v], lower[v], upper[v]);
                add<ROWS>(lower, word, x, numbers);
                add<ROWS>(upper, word + 4, x, numbers);
            }
        }
        fetch<WEIGHT_BYTES - CODE_BYTES, ONCE>(ahead + CODE_BYTES);
        Beside found[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) found[v] = beside(weight, column + v * 16);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v)
                add_number(numbers[r][v], x[r], found[v], chains[r][v]);
    }
};

// One step of a token. Inputs that are not finite make the scale, and so the outputs, NaN.
template <typename Step>
INLINE void quantize_step(const Vec16 (&x)[2], Step& packed) {
    const Vec16 none = zero();
    const float most = largest(maximum(maximum(x[0], none - x[0]), maximum(x[1], none - x[1])));
    const float poison = sum(x[0] * none + x[1] * none);
    const float factor = most > 0.0f ? 127.0f / most : 0.0f;
    const Vec16 factors = broadcast(poison == 0.0f && factor < 1e38f ? factor : 0.0f);
    float sums[2];  // of whole numbers, so exact
    for (int half = 0; half < 2; ++half) {
        const Int16 whole = to_nearest(x[half] * factors);
        store_bytes(packed.x + half * 16, whole);
        sums[half] = poison == 0.0f ? sum(to_floats(whole)) : 0.0f;
    }
    packed.finish(most / 127.0f + poison, sums[0], sums[1]);
}

// One block of tokens, padded with zeros to whole steps.
template <typename Format>
void quantize_activations_piece(const void* untyped, int64_t piece, Scratch&) {
    using Element = typename Format::Element;
    const auto& a = *static_cast<const PackActivationsArguments*>(untyped);
    const int64_t first = piece * a.tokens_per_block, left = a.tokens - first;
    const int64_t rows = left < a.tokens_per_block ? left : a.tokens_per_block;
    for (int64_t r = 0; r < rows; ++r) {
        const Element* x = static_cast<const Element*>(a.x) + (first + r) * a.in_features;
        auto* packed = static_cast<typename Format::Activation*>(a.packed) + first * a.steps + r;
        for (int64_t k = 0; k < a.in_features; k += STEP, packed += rows) {
            const int64_t count = a.in_features - k;
            const Vec16 step[2] = {load_some(x + k, count),
                                   count > 16 ? load_some(x + k + 16, count - 16) : zero()};
            quantize_step(step, *packed);
        }
    }
}

}  // namespace
}  // namespace loire
