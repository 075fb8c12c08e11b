// Packs weights into panels; linear.h, linear_amx.h, linear_quantized.h and (int4) packed_blocks.h say
// in what order.

#pragma once

#include "linear_quantized.h"
#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

constexpr int64_t PACK_AHEAD = 8;  // steps of a row that are fetched ahead: 32 rows are many streams

// One step of a row, zeros beyond the weight.
template <typename Element>
INLINE void read_step(const PackArguments& a, const Element* row, int64_t step,
                      Element (&x)[STEP]) {
    const int64_t left = a.in_features - step * STEP;
    if (row != nullptr && left >= STEP) {
        __builtin_prefetch(row + (step + PACK_AHEAD) * STEP);
        __builtin_memcpy(x, row + step * STEP, sizeof(x));
        return;
    }
    __builtin_memset(x, 0, sizeof(x));
    if (row != nullptr) __builtin_memcpy(x, row + step * STEP, left * sizeof(Element));
}

// One step of one output: bfloat16 in pairs, the earlier one in the upper half of its word (with AMX
// in the lower one), float32 as it is.
template <bool EARLIER_IS_UPPER>
INLINE void put_step(char* step, int64_t lane, const bfloat16 (&x)[STEP]) {
    uint32_t pairs[STEP / 2];
    __builtin_memcpy(pairs, x, sizeof(x));
    auto* words = reinterpret_cast<uint32_t*>(step) + lane;
#pragma GCC unroll 16
    for (int64_t i = 0; i < STEP / 2; ++i)
        words[i * PANEL] = EARLIER_IS_UPPER ? pairs[i] << 16 | pairs[i] >> 16 : pairs[i];
}

template <bool>
INLINE void put_step(char* step, int64_t lane, const float (&x)[STEP]) {
    auto* values = reinterpret_cast<float*>(step) + lane;
    for (int64_t i = 0; i < STEP; ++i) values[i * PANEL] = x[i];
}

template <typename Element, bool EARLIER_IS_UPPER = true>
void pack_dense_piece(const void* untyped, int64_t panel, Scratch&) {
    const auto& a = *static_cast<const PackArguments*>(untyped);
    const int64_t step_bytes = a.panel_bytes / a.steps;
    const Element* rows[PANEL];
    for (int64_t lane = 0; lane < PANEL; ++lane)
        rows[lane] =
            static_cast<const Element*>(a.row(panel * PANEL + lane, sizeof(Element)));
    char* packed = a.packed + panel * a.panel_bytes;
    for (int64_t step = 0; step < a.steps; ++step, packed += step_bytes)
        for (int64_t lane = 0; lane < PANEL; ++lane) {
            Element x[STEP];
            read_step(a, rows[lane], step, x);
            put_step<EARLIER_IS_UPPER>(packed, lane, x);
        }
}

// The codes of 16 numbers: number / scale to the nearest, within bounds, around zero.
INLINE void codes_of(const Vec16& x, const Vec16& scale, float lowest, float highest,
                     int32_t zero_code, int32_t (&codes)[16]) {
    Vec16 whole = x / scale;
    EACH_PART {
        Floats value = whole.part[p];
        value = value == value ? value : Floats{};  // 0 / 0, or a number that is none
        value = value < lowest ? Floats{} + lowest : value;
        whole.part[p] = value > highest ? Floats{} + highest : value;
    }
    const Int16 nearest = to_nearest(whole);
    EACH_PART {
        const Ints shifted = nearest.part[p] + zero_code;
        __builtin_memcpy(codes + p * LANES, &shifted, sizeof(Ints));
    }
}

template <typename Element>
void pack_int8_piece(const void* untyped, int64_t panel, Scratch&) {
    const auto& a = *static_cast<const PackArguments*>(untyped);
    for (int64_t lane = 0; lane < PANEL; ++lane) {
        const int64_t out = panel * PANEL + lane;
        const auto* row = static_cast<const Element*>(a.row(out, sizeof(Element)));
        Element x[STEP];
        Vec16 most = zero(), poison = zero();
        for (int64_t step = 0; step < a.steps; ++step) {
            read_step(a, row, step, x);
            for (int64_t i = 0; i < STEP; i += 16) {
                const Vec16 value = load(x + i);
                most = maximum(maximum(value, zero() - value), most);
                poison = poison + value * zero();
            }
        }
        // Numbers that are not finite make the scale, and so the output, NaN.
        const float scale = a.scales[out] = largest(most) / 127.0f + sum(poison);
        char* packed = a.packed + panel * a.panel_bytes + lane * 4;
        for (int64_t step = 0; step < a.steps; ++step)
            for (int64_t half = 0; half < 2; ++half, packed += PANEL * 16) {
                if (half == 0) read_step(a, row, step, x);
                int32_t codes[16];
                codes_of(load(x + half * 16), broadcast(scale), -127.0f, 127.0f, INT8_ZERO, codes);
                for (int i = 0; i < 16; ++i) packed[i / 4 * PANEL * 4 + i % 4] = char(codes[i]);
            }
    }
}

template <typename Element>
void pack_int4_piece(const void* untyped, int64_t panel, Scratch&) {
    const auto& a = *static_cast<const PackArguments*>(untyped);
    constexpr int64_t CODE_BYTES = PANEL * STEP / 2;
    for (int64_t lane = 0; lane < PANEL; ++lane) {
        const auto* row = static_cast<const Element*>(
            a.row(panel * PANEL + lane, sizeof(Element)));
        char* packed = a.packed + panel * a.panel_bytes;
        for (int64_t step = 0; step < a.steps; ++step, packed += CODE_BYTES + PANEL * 2) {
            Element x[STEP];
            read_step(a, row, step, x);
            const Vec16 first = load(x), second = load(x + 16);
            const float high = largest(maximum(first, second));
            const float low = -largest(maximum(zero() - first, zero() - second));
            // The number of largest magnitude gets the code 0.
            const float most = high >= -low ? high : low;
            const float poison = sum(first * zero() + second * zero());
            bfloat16 kept[16];
            store(kept, broadcast(most / -8.0f + poison));
            __builtin_memcpy(packed + CODE_BYTES + lane * 2, kept, 2);
            const Vec16 scale = load(kept);
            int32_t lower[16], upper[16];
            codes_of(first, scale, -8.0f, 7.0f, 8, lower);
            codes_of(second, scale, -8.0f, 7.0f, 8, upper);
            for (int i = 0; i < 16; ++i)
                packed[(i / 4 * PANEL + lane) * 4 + i % 4] = char(upper[i] << 4 | lower[i]);
        }
    }
}

}  // namespace
}  // namespace loire
