// Inputs of quantized products, rounded: 32 of a token to whole numbers from -127 to 127 times a scale,
//     scale = largest magnitude / 127, rounded up to four binary digits,   x = round(input * (1 / scale)).
// The digits are few so that weights' scales can be multiplied with all there are beforehand
// (unpacked_blocks.h).

#pragma once

#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

// What comes of 32 inputs beside their whole numbers.
struct RoundedStep {
    float scale;
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

// NaN of what is not finite, or 2^100 and more; zero of scales below 2^-100.
INLINE float scale_of_step(float most) {
    if (!(most < 0x1p100f)) return __builtin_nanf("");
    const float exact = most / 127.0f;
    if (exact < 0x1p-100f) return 0.0f;
    constexpr uint32_t DROPPED = (1u << 20) - 1;
    uint32_t bits;
    __builtin_memcpy(&bits, &exact, sizeof(bits));
    bits = (bits + DROPPED) & ~DROPPED;
    float scale;
    __builtin_memcpy(&scale, &bits, sizeof(scale));
    return scale;
}

INLINE RoundedStep round_step(const Vec16 (&x)[2], int8_t* whole_numbers) {
    RoundedStep rounded{scale_of_step(largest_magnitude(x)), {0, 0}};
    const Vec16 factors = broadcast(rounded.scale > 0.0f ? 1.0f / rounded.scale : 0.0f);
    const Int16 first = to_nearest(x[0] * factors), second = to_nearest(x[1] * factors);
    store_bytes(whole_numbers, first), store_bytes(whole_numbers + 16, second);
    if (rounded.scale != rounded.scale) return rounded;
    // Both sums at once: neither has a magnitude of 2048, and all that comes of them is exact.
    const auto both = int32_t(sum(fma(4096.0f, to_floats(second), to_floats(first))));
    rounded.sums[1] = (both + 2048) >> 12;
    rounded.sums[0] = both - rounded.sums[1] * 4096;
    return rounded;
}

// Adds four inputs of a step, of ROWS tokens one behind the other, times their codes.
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

// One block of tokens, padded with zeros to whole steps of 32: step after step, in a step token by token.
template <typename Format>
void round_activations_piece(const void* untyped, int64_t piece, Scratch&) {
    using Element = typename Format::Element;
    const auto& a = *static_cast<const PackActivationsArguments*>(untyped);
    const int64_t first = piece * a.tokens_per_block, left = a.tokens - first;
    const int64_t rows = left < a.tokens_per_block ? left : a.tokens_per_block;
    const int64_t steps = (a.in_features + STEP - 1) / STEP;
    for (int64_t r = 0; r < rows; ++r) {
        const Element* x = static_cast<const Element*>(a.x) + (first + r) * a.in_features;
        auto* packed = static_cast<typename Format::Activation*>(a.packed) + first * steps + r;
        for (int64_t k = 0; k < a.in_features; k += STEP, packed += rows) {
            const int64_t count = a.in_features - k;
            const Vec16 step[2] = {load_some(x + k, count),
                                   count > 16 ? load_some(x + k + 16, count - 16) : zero()};
            Format::keep(round_step(step, packed->x), *packed);
        }
    }
}

}  // namespace
}  // namespace loire
