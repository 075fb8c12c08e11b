// Inputs of quantized products, rounded: 32 of a token to whole numbers from -127 to 127 times a scale,
//     scale = largest magnitude / 127, rounded up to four binary digits,   x = round(input * (1 / scale)).
// The digits are few so that weights' scales can be multiplied with all there are beforehand
// (unpacked_blocks.h). Where those are powers of two the scale is exact, as far as float32 goes.
// Fine ones are multiples of an eighth of the scale, whole numbers from -1016 to 1016 in two places:
//     x = 8 * upper + lower,   upper from -127 to 127, lower from -4 to 3.

#pragma once

#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

// Of the lower place: no more than leave 32 products with codes of eight bits within 2^22 (BlockStep).
constexpr int FINE_BITS = 3;
static_assert(32 * 127 * (127 << FINE_BITS) < 1 << 22);

// What comes of 32 inputs beside their whole numbers.
struct RoundedStep {
    float scale;      // what they are multiples of
    int32_t sums[2];  // of both halves
};

// Infinity if one is not finite.
INLINE float largest_magnitude(const Vec16 (&x)[2]) {
    constexpr int32_t MAGNITUDE = 0x7fffffff, INFINITE = 0x7f800000;
    Vec16 most;
    EACH_PART {
        const Ints first = (Ints)x[0].part[p] & MAGNITUDE, second = (Ints)x[1].part[p] & MAGNITUDE;
        const Ints larger = first > second ? first : second;
        most.part[p] = (Floats)(larger < INFINITE ? larger : Ints{} + INFINITE);
    }
    return largest(most);
}

// Scales of 16 steps, from their largest magnitudes: NaN of what is not finite, or 2^100 and more; zero of
// scales below 2^-100.
template <bool EXACT>
INLINE Vec16 scales_of_steps(const Vec16& most) {
    constexpr int32_t DROPPED = (1 << 20) - 1;
    Vec16 result;
    EACH_PART {
        const Floats exact = most.part[p] / 127.0f;
        const Floats scale = EXACT ? exact : (Floats)(((Ints)exact + DROPPED) & ~DROPPED);
        const Floats counts = exact < 0x1p-100f ? Floats{} : scale;
        result.part[p] = most.part[p] < 0x1p100f ? counts : Floats{} + __builtin_nanf("");
    }
    return result;
}

INLINE Vec16 factors_of_steps(const Vec16& scales) {
    Vec16 result;
    EACH_PART result.part[p] = scales.part[p] > 0.0f ? 1.0f / scales.part[p] : Floats{};
    return result;
}

INLINE RoundedStep round_step(const Vec16 (&x)[2], float scale, float factor, int8_t* whole_numbers) {
    RoundedStep rounded{scale, {0, 0}};
    const Vec16 factors = broadcast(factor);
    const Int16 first = to_nearest(x[0] * factors), second = to_nearest(x[1] * factors);
    store_bytes(whole_numbers, first), store_bytes(whole_numbers + 16, second);
    if (scale != scale) return rounded;
    // Both sums at once: neither has a magnitude of 2048, and all that comes of them is exact.
    const auto both = int32_t(sum(fma(4096.0f, to_floats(second), to_floats(first))));
    rounded.sums[1] = (both + 2048) >> 12;
    rounded.sums[0] = both - rounded.sums[1] * 4096;
    return rounded;
}

// The same of fine ones: the upper places of all 32, then the lower ones.
INLINE RoundedStep round_finely(const Vec16 (&x)[2], float scale, float factor,
                                int8_t* whole_numbers) {
    RoundedStep rounded{scale, {0, 0}};
    for (int half = 0; half < 2; ++half) {
        const Int16 number = to_nearest(x[half] * broadcast(factor));
        Int16 upper, lower;
        EACH_PART {
            upper.part[p] = (number.part[p] + (1 << (FINE_BITS - 1))) >> FINE_BITS;
            lower.part[p] = number.part[p] - (upper.part[p] << FINE_BITS);
        }
        store_bytes(whole_numbers + half * 16, upper);
        store_bytes(whole_numbers + STEP + half * 16, lower);
        if (scale == scale) rounded.sums[half] = int32_t(sum(to_floats(number)));
    }
    return rounded;
}

// The steps of a token's inputs, padded with zeros to whole ones; of the packed ones one lies `rows`
// behind the other. Scales of 16 steps are worked out together.
template <typename Format>
void round_row(const typename Format::Element* x, int64_t inputs, typename Format::Activation* packed,
               int64_t rows) {
    constexpr int TOGETHER = 16;
    const auto load_step = [&](int64_t k, Vec16 (&step)[2]) __attribute__((always_inline)) {
        step[0] = load_some(x + k, inputs - k);
        step[1] = inputs - k > 16 ? load_some(x + k + 16, inputs - k - 16) : zero();
    };
    for (int64_t first = 0; first < inputs; first += TOGETHER * STEP) {
        const int64_t left = inputs - first;
        const int64_t end = left < TOGETHER * STEP ? left : TOGETHER * STEP;
        float scales[TOGETHER] = {}, factors[TOGETHER];
        Vec16 step[2];
        for (int64_t k = 0; k < end; k += STEP) {
            load_step(first + k, step);
            scales[k / STEP] = largest_magnitude(step);
        }
        Vec16 found = scales_of_steps<Format::EXACT_SCALES>(load(scales));
        if constexpr (Format::HAS_FINE_INPUTS) found = found * broadcast(1.0f / (1 << FINE_BITS));
        store(scales, found), store(factors, factors_of_steps(found));
        for (int64_t k = 0; k < end; k += STEP, packed += rows) {
            load_step(first + k, step);
            const float scale = scales[k / STEP], factor = factors[k / STEP];
            if constexpr (Format::HAS_FINE_INPUTS)
                Format::keep(round_finely(step, scale, factor, packed->x), *packed);
            else
                Format::keep(round_step(step, scale, factor, packed->x), *packed);
        }
    }
}

// Adds four inputs of a step, of ROWS tokens one behind the other, times their codes. From word 8 on:
// lower places.
template <int ROWS, int VECTORS, typename Step>
INLINE void add_word(const Int16 (&codes)[VECTORS], int word, const Step* x,
                     Int16 (&numbers)[ROWS][VECTORS]) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        int32_t four;
        __builtin_memcpy(&four, x[r].x + 4 * word, 4);
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) numbers[r][v] = dot(numbers[r][v], codes[v], four);
    }
}

// What was added up of upper places, as what lower ones are added to.
INLINE Int16 to_lower_place(const Int16& number) {
    Int16 result;
    EACH_PART result.part[p] = number.part[p] << FINE_BITS;
    return result;
}

template <int ROWS, int VECTORS>
INLINE void to_lower_place(Int16 (&numbers)[ROWS][VECTORS]) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) numbers[r][v] = to_lower_place(numbers[r][v]);
}

// One block of tokens: step after step, in a step token by token.
template <typename Format>
void round_activations_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const PackActivationsArguments*>(untyped);
    const int64_t first = piece * a.tokens_per_block, left = a.tokens - first;
    const int64_t rows = left < a.tokens_per_block ? left : a.tokens_per_block;
    const int64_t steps = (a.in_features + STEP - 1) / STEP;
    for (int64_t r = 0; r < rows; ++r)
        round_row<Format>(static_cast<const typename Format::Element*>(a.x) + (first + r) * a.in_features,
                          a.in_features,
                          static_cast<typename Format::Activation*>(a.packed) + first * steps + r, rows);
}

}  // namespace
}  // namespace loire
