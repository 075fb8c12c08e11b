// Draws a token from a row of logits: loire/kernels/sampling.py defines what may be drawn.
//
// Weights are exp((logit - largest) / temperature). Where the likeliest must be told from the rest
// there is no sorting: the bits of a float32 in 0..1 are ordered as it is, so the weight at which to
// cut is found digit by digit, from histograms of how many weights have a digit and what they sum
// to. A row's token depends on nothing but the row and its knobs.

#pragma once

#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

constexpr int DIGIT_BITS = 10, DIGITS = 1 << DIGIT_BITS;
constexpr int64_t DRAW_BLOCK = 1024;  // weights whose sum is looked at before they are

struct Histogram {
    int64_t counts[DIGITS];
    double sums[DIGITS];
};

INLINE uint32_t bits_of(float weight) {
    uint32_t bits;
    __builtin_memcpy(&bits, &weight, sizeof(bits));
    return bits;
}

INLINE float highest(const float* row, int64_t size) {
    const float none = -__builtin_inff();
    Vec16 high = broadcast(none);
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) high = maximum(load(row + i), high);
    float result = largest(high);
    for (; i < size; ++i) result = row[i] > result ? row[i] : result;
    return result;
}

// weights[i] = exp((row[i] - high) / temperature), or 0 where that is below min_p; zeros up to whole
// blocks.
INLINE void weigh_row(const float* row, int64_t size, float high, float temperature, float min_p,
                      float* weights) {
    const Vec16 reference = broadcast(high), divisor = broadcast(temperature);
    const Vec16 least = broadcast(min_p);
    for (int64_t i = 0; i < size; i += 16) {
        const Vec16 weight = exponential((load_some(row + i, size - i) - reference) / divisor);
        Vec16 kept;
        EACH_PART kept.part[p] = weight.part[p] < least.part[p] ? Floats{} : weight.part[p];
        store_some(weights + i, kept, size - i);
    }
    for (int64_t i = size; i % DRAW_BLOCK != 0; ++i) weights[i] = 0.0f;
}

INLINE double sum_of_block(const float* weights) {
    Vec16 total = zero();
    for (int64_t i = 0; i < DRAW_BLOCK; i += 16) total = total + load(weights + i);
    return double(sum(total));
}

INLINE double sum_of(const float* weights, int64_t size) {
    double total = 0.0;
    for (int64_t i = 0; i < size; i += DRAW_BLOCK) total += sum_of_block(weights + i);
    return total;
}

// Sets all weights to 0 but the fewest of the largest that are `most` or sum up to `share` of all
// (the first of equals). share: infinite for as many as `most`.
INLINE void keep_largest(float* weights, int64_t size, int64_t most, double share,
                         Histogram& histogram) {
    const double target = share * sum_of(weights, size);
    int64_t count = 0;
    double reached = 0.0;
    uint32_t prefix = 0;  // of the weight at which to cut
    for (int shift = 2 * DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        __builtin_memset(&histogram, 0, sizeof(histogram));
        for (int64_t i = 0; i < size; ++i) {
            const uint32_t bits = bits_of(weights[i]);
            if (bits == 0 || uint64_t(bits) >> (shift + DIGIT_BITS) != prefix) continue;
            const uint32_t digit = bits >> shift & (DIGITS - 1);
            histogram.counts[digit] += 1;
            histogram.sums[digit] += double(weights[i]);
        }
        int digit = DIGITS - 1;
        for (; digit > 0; --digit) {
            const int64_t with = count + histogram.counts[digit];
            if (with >= most || reached + histogram.sums[digit] >= target) break;
            count = with;
            reached += histogram.sums[digit];
        }
        prefix = prefix << DIGIT_BITS | uint32_t(digit);
    }
    float bound;
    __builtin_memcpy(&bound, &prefix, sizeof(bound));
    int64_t equals = most - count;
    if (reached + double(equals) * double(bound) > target) {  // fewer are enough
        equals = int64_t((target - reached) / double(bound));
        equals += reached + double(equals) * double(bound) < target;
    }
    for (int64_t i = 0; i < size; ++i)
        if (weights[i] < bound || (weights[i] == bound && equals-- <= 0)) weights[i] = 0.0f;
}

// The first index at which the sum of the weights up to it passes draw times the sum of all.
INLINE int64_t index_at(const float* weights, int64_t size, double draw) {
    const double target = draw * sum_of(weights, size);
    double before = 0.0;
    int64_t last = 0;  // of those with weight
    for (int64_t block = 0; block < size; block += DRAW_BLOCK) {
        const double here = sum_of_block(weights + block);
        if (here == 0.0) continue;
        const bool passes = before + here > target;
        double reached = before;
        for (int64_t i = block; i < block + DRAW_BLOCK; ++i) {
            if (weights[i] == 0.0f) continue;
            last = i;
            reached += double(weights[i]);
            if (passes && reached > target) return i;
        }
        // (Where the two ways of adding differ in rounding, the block's last one it is.)
        if (passes) return last;
        before += here;
    }
    return last;
}

// A token of row number `index`.
INLINE int64_t draw_token(const ChooseArguments& a, int64_t index, Scratch& scratch) {
    const float* row = a.rows + index * a.size;
    const int64_t padded = (a.size + DRAW_BLOCK - 1) / DRAW_BLOCK * DRAW_BLOCK;
    char* memory = scratch.reserve(sizeof(Histogram) + padded * sizeof(float));
    auto& histogram = *reinterpret_cast<Histogram*>(memory);
    float* weights = reinterpret_cast<float*>(memory + sizeof(Histogram));
    weigh_row(row, a.size, highest(row, a.size), a.temperature[index], a.min_p[index], weights);
    if (a.top_k[index] < a.size)
        keep_largest(weights, padded, a.top_k[index], __builtin_inf(), histogram);
    if (a.top_p[index] < 1.0f)
        keep_largest(weights, padded, padded, double(a.top_p[index]), histogram);
    return index_at(weights, padded, a.draw[index]);
}

}  // namespace
}  // namespace loire
