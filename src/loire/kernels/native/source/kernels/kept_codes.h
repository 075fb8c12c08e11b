// Keys and values in eight bits: head_dim codes in -127..127 with one float32 scale,
//     x = code * scale,   scale = largest magnitude / 127.
// bfloat16 and float32 hold every code exactly, so codes are multiplied as they are, and the scales
// meet the scores and the weights of the softmax, one per key.

#pragma once

#include "vec16.h"

namespace loire {
namespace {

// Rounds to nearest, ties to even. Elements that are not finite make the scale NaN.
template <typename Element>
INLINE void keep_codes(const Element* x, int64_t count, int8_t* codes, float* scale) {
    const Vec16 none = zero();
    Vec16 high = none, poison = none;
    for (int64_t i = 0; i < count; i += 16) {
        const Vec16 part = load_some(x + i, count - i);
        high = maximum(high, maximum(part, none - part));
        poison = poison + part * none;
    }
    const float most = largest(high), added = sum(poison);
    const float factor = most > 0.0f ? 127.0f / most : 0.0f;
    const Vec16 factors = broadcast(added == 0.0f && factor < 1e38f ? factor : 0.0f);
    for (int64_t i = 0; i < count; i += 16) {
        const Int16 whole = to_nearest(load_some(x + i, count - i) * factors);
        int8_t stored[16];
        store_bytes(stored, whole);
        __builtin_memcpy(codes + i, stored, count - i < 16 ? count - i : 16);
    }
    *scale = most / 127.0f + added;
}

INLINE void store_exact(float* target, const Vec16& value) { store(target, value); }

// For values that bfloat16 holds.
INLINE void store_exact(bfloat16* target, const Vec16& value) {
    EACH_PART {
        const Halves halves = __builtin_convertvector((Words)value.part[p] >> 16, Halves);
        __builtin_memcpy(target + p * LANES, &halves, sizeof(Halves));
    }
}

// Codes as numbers; target has whole vectors.
template <typename Element>
INLINE void widen(const int8_t* codes, int64_t count, Element* target) {
    int64_t i = 0;
#if defined(LOIRE_AVX512_BF16)
    if constexpr (sizeof(Element) == 2)
        for (; i + 32 <= count; i += 32) {
            const Vec16 first = load(codes + i), second = load(codes + i + 16);
            _mm512_storeu_si512(target + i, (__m512i)_mm512_cvtne2ps_pbh(second.part[0], first.part[0]));
        }
#endif
    for (; i < count; i += 16) store_exact(target + i, load_some(codes + i, count - i));
}

}  // namespace
}  // namespace loire
