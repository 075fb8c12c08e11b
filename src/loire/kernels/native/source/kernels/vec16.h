// Sixteen float32 lanes, whatever the instruction set: one 512-bit register, two of 256 or four of
// 128. Kernels are written in Vec16, so their order of additions is the same everywhere.
//
// Everything here and in the kernels' headers is in an unnamed namespace: the same inline function is
// compiled with different instruction sets, and the linker must not merge the copies. For the same
// reason no C++ library header is included: its inline functions could be used by the rest.

#pragma once

#include <cstdint>

#include "operations.h"

#if defined(LOIRE_AVX512) || defined(LOIRE_AVX2)
#include <immintrin.h>
#elif defined(LOIRE_NEON)
#include <arm_neon.h>
#endif

namespace loire {
namespace {

#if defined(LOIRE_AVX512)
constexpr int LANES = 16;
#elif defined(LOIRE_AVX2)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int PARTS = 16 / LANES;

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

struct Vec16 {
    Floats part[PARTS];
};

template <bool FIRST, typename A, typename B>
struct EitherOf {
    using Type = A;
};
template <typename A, typename B>
struct EitherOf<false, A, B> {
    using Type = B;
};
template <bool FIRST, typename A, typename B>
using Either = typename EitherOf<FIRST, A, B>::Type;

#define EACH_PART _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; ++p)
#define INLINE inline __attribute__((always_inline))

INLINE Vec16 broadcast(float value) {
    Vec16 result;
    EACH_PART result.part[p] = value - Floats{};
    return result;
}

INLINE Vec16 zero() {
    Vec16 result;
    EACH_PART result.part[p] = Floats{};
    return result;
}

INLINE Vec16 load(const float* source) {
    Vec16 result;
    EACH_PART __builtin_memcpy(&result.part[p], source + p * LANES, sizeof(Floats));
    return result;
}

INLINE Vec16 load(const bfloat16* source) {
    Vec16 result;
    EACH_PART {
        Halves halves;
        __builtin_memcpy(&halves, source + p * LANES, sizeof(Halves));
        result.part[p] = (Floats)(__builtin_convertvector(halves, Words) << 16);
    }
    return result;
}

// LANES of them. (The compilers' own conversion goes byte by byte.)
INLINE Ints to_ints(const int8_t* source) {
#if defined(LOIRE_AVX512)
    return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
#elif defined(LOIRE_AVX2)
    return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source)));
#else
    Ints result;
    for (int i = 0; i < LANES; ++i) result[i] = source[i];
    return result;
#endif
}

INLINE Vec16 load(const int8_t* source) {
    Vec16 result;
    EACH_PART result.part[p] = __builtin_convertvector(to_ints(source + p * LANES), Floats);
    return result;
}

// The float32 of a number in half precision. Denormals are none then, so that nothing flushes them.
INLINE float half_at(const void* source) {
    uint16_t half;
    __builtin_memcpy(&half, source, sizeof(half));
    const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
    uint32_t bits;
    if (rest < 0x400) {  // a denormal half, or zero
        const float value = float(int32_t(rest)) * 0x1p-24f;
        __builtin_memcpy(&bits, &value, sizeof(bits));
    } else {
        bits = (rest << 13) + ((rest >= 0x7c00 ? 255 - 31 : 127 - 15) << 23);
    }
    bits |= sign;
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
}

// Sixteen of them.
INLINE Vec16 load_halves(const void* source) {
    Vec16 result;
#if defined(LOIRE_AVX512)
    result.part[0] = (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(source)));
#elif defined(LOIRE_AVX2)
    EACH_PART result.part[p] = (Floats)_mm256_cvtph_ps(
        _mm_loadu_si128(static_cast<const __m128i*>(source) + p));
#else
    for (int i = 0; i < 16; ++i)
        result.part[i / LANES][i % LANES] = half_at(static_cast<const char*>(source) + 2 * i);
#endif
    return result;
}

INLINE void store(float* target, const Vec16& value) {
    EACH_PART __builtin_memcpy(target + p * LANES, &value.part[p], sizeof(Floats));
}

// Rounds to nearest, ties to even; NaN stays NaN.
INLINE void store(bfloat16* target, const Vec16& value) {
    EACH_PART {
        const Words bits = (Words)value.part[p];
        const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        const Words chosen = value.part[p] == value.part[p] ? rounded : (Words{} + 0x7fc0);
        const Halves halves = __builtin_convertvector(chosen, Halves);
        __builtin_memcpy(target + p * LANES, &halves, sizeof(Halves));
    }
}

// The first count of 16 elements; the other lanes are zero.
template <typename Element>
INLINE Vec16 load_some(const Element* source, int64_t count) {
    if (count >= 16) return load(source);
    Element padded[16] = {};
    __builtin_memcpy(padded, source, count * sizeof(Element));
    return load(padded);
}

template <typename Element>
INLINE void store_some(Element* target, const Vec16& value, int64_t count) {
    if (count >= 16) return store(target, value);
    Element padded[16];
    store(padded, value);
    __builtin_memcpy(target, padded, count * sizeof(Element));
}

INLINE Vec16 operator+(const Vec16& a, const Vec16& b) {
    Vec16 result;
    EACH_PART result.part[p] = a.part[p] + b.part[p];
    return result;
}

INLINE Vec16 operator-(const Vec16& a, const Vec16& b) {
    Vec16 result;
    EACH_PART result.part[p] = a.part[p] - b.part[p];
    return result;
}

INLINE Vec16 operator*(const Vec16& a, const Vec16& b) {
    Vec16 result;
    EACH_PART result.part[p] = a.part[p] * b.part[p];
    return result;
}

INLINE Vec16 operator/(const Vec16& a, const Vec16& b) {
    Vec16 result;
    EACH_PART result.part[p] = a.part[p] / b.part[p];
    return result;
}

// The larger; b where either is NaN.
INLINE Vec16 maximum(const Vec16& a, const Vec16& b) {
    Vec16 result;
#if defined(LOIRE_AVX512)  // (compilers take a comparison, which needs a multiplier)
    result.part[0] = (Floats)_mm512_max_ps(a.part[0], b.part[0]);
#else
    EACH_PART result.part[p] = a.part[p] > b.part[p] ? a.part[p] : b.part[p];
#endif
    return result;
}

// a * b + c, rounded once where the instruction set can. (Products of bfloat16 are exact in
// float32, so for those it makes no difference.)
INLINE Floats fma_part(Floats a, Floats b, Floats c) {
#if defined(LOIRE_AVX512)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(LOIRE_AVX2)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(LOIRE_NEON)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

INLINE Vec16 fma(const Vec16& a, const Vec16& b, const Vec16& c) {
    Vec16 result;
    EACH_PART result.part[p] = fma_part(a.part[p], b.part[p], c.part[p]);
    return result;
}

INLINE Vec16 fma(float a, const Vec16& b, const Vec16& c) { return fma(broadcast(a), b, c); }

// Sixteen 32-bit integers, or sixteen groups of four bytes.
struct Int16 {
    Ints part[PARTS];
};

INLINE Int16 broadcast_int(int32_t value) {
    Int16 result;
    EACH_PART result.part[p] = value - Ints{};
    return result;
}

INLINE Int16 load_ints(const void* source) {
    Int16 result;
    EACH_PART __builtin_memcpy(&result.part[p], static_cast<const char*>(source) + p * LANES * 4,
                               sizeof(Ints));
    return result;
}

INLINE void store_ints(void* target, const Int16& value) {
    EACH_PART __builtin_memcpy(static_cast<char*>(target) + p * LANES * 4, &value.part[p],
                               sizeof(Ints));
}

// The same bits.
INLINE Vec16 as_floats(const Int16& value) {
    Vec16 result;
    EACH_PART result.part[p] = (Floats)value.part[p];
    return result;
}

INLINE Int16 as_ints(const Vec16& value) {
    Int16 result;
    EACH_PART result.part[p] = (Ints)value.part[p];
    return result;
}

INLINE Int16 operator+(const Int16& a, const Int16& b) {
    Int16 result;
    EACH_PART result.part[p] = a.part[p] + b.part[p];
    return result;
}

INLINE Int16 operator|(const Int16& a, const Int16& b) {
    Int16 result;
    EACH_PART result.part[p] = a.part[p] | b.part[p];
    return result;
}

INLINE Vec16 to_floats(const Int16& value) {
    Vec16 result;
    EACH_PART result.part[p] = __builtin_convertvector(value.part[p], Floats);
    return result;
}

// Rounds to nearest, ties to even. For values within 2^22.
INLINE Int16 to_nearest(const Vec16& value) {
    constexpr float TO_INTEGER = 12582912.0f;
    Int16 result;
    EACH_PART result.part[p] =
        (Ints)(value.part[p] + TO_INTEGER) - (Ints)(Floats{} + TO_INTEGER);
    return result;
}

// Sixteen integers of eight bits.
INLINE void store_bytes(int8_t* target, const Int16& value) {
#if defined(LOIRE_AVX512)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm512_cvtepi32_epi8((__m512i)value.part[0]));
#else
    int32_t values[16];
    EACH_PART __builtin_memcpy(values + p * LANES, &value.part[p], sizeof(Ints));
    for (int i = 0; i < 16; ++i) target[i] = int8_t(values[i]);
#endif
}

// What the bytes of a in dot() can be: 0 to 255, or with NEON, which has no products of unsigned with
// signed bytes, -127 to 127.
#if defined(LOIRE_NEON)
constexpr bool SIGNED_CODES = true;
#else
constexpr bool SIGNED_CODES = false;
#endif

// sum + the four products of each lane's bytes, those of a as above, those of b -127 to 127. Exact.
INLINE Ints dot_part(Ints sum, Ints a, Ints b) {
#if defined(LOIRE_AVX512_BF16)  // (every processor that has it has VNNI, and the build says so)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(LOIRE_AVX512)
    const __m512i even_a = _mm512_and_si512((__m512i)a, _mm512_set1_epi16(0xff));
    const __m512i even_b = _mm512_srai_epi16(_mm512_slli_epi16((__m512i)b, 8), 8);
    const __m512i even = _mm512_madd_epi16(even_a, even_b);
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16((__m512i)a, 8),
                                          _mm512_srai_epi16((__m512i)b, 8));
    return sum + (Ints)even + (Ints)odd;
#elif defined(LOIRE_AVX2)
    const __m256i even_a = _mm256_and_si256((__m256i)a, _mm256_set1_epi16(0xff));
    const __m256i even_b = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)b, 8), 8);
    const __m256i even = _mm256_madd_epi16(even_a, even_b);
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16((__m256i)a, 8),
                                          _mm256_srai_epi16((__m256i)b, 8));
    return sum + (Ints)even + (Ints)odd;
#elif defined(LOIRE_DOTPROD)
    return vdotq_s32(sum, (int8x16_t)a, (int8x16_t)b);
#elif defined(LOIRE_NEON)
    const int8x16_t x = (int8x16_t)a, y = (int8x16_t)b;
    const int16x8_t lower = vmull_s8(vget_low_s8(x), vget_low_s8(y)), upper = vmull_high_s8(x, y);
    return vpadalq_s16(sum, vpaddq_s16(lower, upper));  // (two products fit in 16 bits)
#else
    for (int byte = 0; byte < 4; ++byte)
        sum += (Ints)((Words)a >> (8 * byte) & 0xff) * ((Ints)((Words)b << (24 - 8 * byte)) >> 24);
    return sum;
#endif
}

INLINE Int16 dot(const Int16& sum, const Int16& a, int32_t b) {
    Int16 result;
    EACH_PART result.part[p] = dot_part(sum.part[p], a.part[p], b - Ints{});
    return result;
}

// The bytes of a table of 16 at indices, each a byte, as dot() takes them: plus 128 unless SIGNED_CODES.
INLINE Int16 look_up(const int8_t (&table)[16], const Int16& indices) {
    Int16 result;
#if defined(LOIRE_AVX512)
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    const __m512i all = _mm512_xor_si512(_mm512_broadcast_i32x4(bytes), _mm512_set1_epi8(-128));
    result.part[0] = (Ints)_mm512_shuffle_epi8(all, (__m512i)indices.part[0]);
#elif defined(LOIRE_AVX2)
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    const __m256i all = _mm256_xor_si256(_mm256_broadcastsi128_si256(bytes), _mm256_set1_epi8(-128));
    EACH_PART result.part[p] = (Ints)_mm256_shuffle_epi8(all, (__m256i)indices.part[p]);
#elif defined(LOIRE_NEON)
    const int8x16_t bytes = vld1q_s8(table);
    EACH_PART result.part[p] = (Ints)vqtbl1q_s8(bytes, (uint8x16_t)indices.part[p]);
#else
    constexpr uint8_t FLIPPED = SIGNED_CODES ? 0 : 128;
    EACH_PART {
        uint8_t found[sizeof(Ints)];
        __builtin_memcpy(found, &indices.part[p], sizeof(found));
        for (uint8_t& byte : found) byte = uint8_t(table[byte]) ^ FLIPPED;
        __builtin_memcpy(&result.part[p], found, sizeof(found));
    }
#endif
    return result;
}

// Two tables of 16 bytes, each for eight lanes: of each four there is one.
INLINE Int16 two_tables(const char* source) {
    Int16 result;
#if defined(LOIRE_AVX512)
    const __m512i two = _mm512_castsi256_si512(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
    result.part[0] = (Ints)_mm512_shuffle_i64x2(two, two, 0b01010000);
#elif defined(LOIRE_AVX2)
    EACH_PART result.part[p] = (Ints)_mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + p * 16)));
#else
    EACH_PART __builtin_memcpy(&result.part[p], source + p / 2 * 16, sizeof(Ints));
#endif
    return result;
}

// The bytes of tables of 16, one for each four lanes, at indices, each a byte.
INLINE Int16 look_up(const Int16& tables, const Int16& indices) {
    Int16 result;
#if defined(LOIRE_AVX512)
    result.part[0] = (Ints)_mm512_shuffle_epi8((__m512i)tables.part[0], (__m512i)indices.part[0]);
#elif defined(LOIRE_AVX2)
    EACH_PART result.part[p] =
        (Ints)_mm256_shuffle_epi8((__m256i)tables.part[p], (__m256i)indices.part[p]);
#elif defined(LOIRE_NEON)
    EACH_PART result.part[p] =
        (Ints)vqtbl1q_u8((uint8x16_t)tables.part[p], (uint8x16_t)indices.part[p]);
#else
    uint8_t table[64], found[64];
    store_ints(table, tables);
    store_ints(found, indices);
    for (int i = 0; i < 64; ++i) found[i] = table[i / 16 * 16 + found[i]];
    result = load_ints(found);
#endif
    return result;
}

// Each lane one bfloat16 pair: the float32 values of the upper and of the lower halves.
INLINE Vec16 upper_halves(const Vec16& pairs) {
    Vec16 result;
    EACH_PART result.part[p] = (Floats)((Words)pairs.part[p] & 0xffff0000u);
    return result;
}

INLINE Vec16 lower_halves(const Vec16& pairs) {
    Vec16 result;
    EACH_PART result.part[p] = (Floats)((Words)pairs.part[p] << 16);
    return result;
}

// One of the lanes, brought together two by two: lane i with i + 8, then + 4, + 2, + 1.
template <typename Combine>
INLINE float together(const Vec16& value, Combine combine) {
#if defined(LOIRE_AVX512)
    __m512 lanes = value.part[0];
    lanes = combine(lanes, _mm512_shuffle_f32x4(lanes, lanes, 0x4e));
    lanes = combine(lanes, _mm512_shuffle_f32x4(lanes, lanes, 0xb1));
    lanes = combine(lanes, _mm512_permute_ps(lanes, 0x4e));
    lanes = combine(lanes, _mm512_permute_ps(lanes, 0xb1));
    return lanes[0];
#else
    float lanes[16];
    store(lanes, value);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] = combine(lanes[i], lanes[i + width]);
    return lanes[0];
#endif
}

INLINE float sum(const Vec16& value) {
    return together(value, [](auto a, auto b) { return a + b; });
}

// sums[i]: of the lanes of values[i], brought together like sum()'s.
template <int COUNT>
INLINE void sum_each(const Vec16 (&values)[COUNT], float* sums) {
#if defined(LOIRE_AVX512)
    if constexpr (COUNT == 8) {
        __m512 four[4], two[2];
        // Those of two vectors side by side, each time.
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const __m512 a = values[i].part[0], b = values[i + 4].part[0];
            four[i] = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i)
            two[i] = _mm512_shuffle_f32x4(four[i], four[i + 2], 0x88) +
                     _mm512_shuffle_f32x4(four[i], four[i + 2], 0xdd);
        __m512 one = _mm512_shuffle_ps(two[0], two[1], 0x44) + _mm512_shuffle_ps(two[0], two[1], 0xee);
        one = one + _mm512_permute_ps(one, 0xb1);
        const __m512i places = _mm512_setr_epi32(0, 2, 8, 10, 4, 6, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
        _mm256_storeu_ps(sums, _mm512_castps512_ps256(_mm512_permutexvar_ps(places, one)));
        return;
    }
#endif
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; ++i) sums[i] = sum(values[i]);
}

INLINE float largest(const Vec16& value) {
    return together(value, [](auto a, auto b) { return a > b ? a : b; });
}

// e to the x within 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]
// (coefficients of Cephes' expf, Moshier 1989). Below -86.5 it is 0, above 88 it stays at e^88; NaN stays NaN.
// MAY_BE_LARGE: whether x may be above 88. IS_COARSE: within 2^-18, enough for what is rounded to
// bfloat16 (of polynomials of degree 4 that are 1 at 0, the one with the least relative error).
template <bool MAY_BE_LARGE = true, bool IS_COARSE = false>
INLINE Vec16 exponential(const Vec16& argument) {
    constexpr float LOWEST = -86.5f, HIGHEST = 88.0f, TO_INTEGER = 12582912.0f;
    Vec16 result;
    EACH_PART {
        const Floats given = argument.part[p];
#if defined(LOIRE_AVX512)
        // (Of a NaN and a number these give the second.)
        Floats x = MAY_BE_LARGE ? (Floats)_mm512_min_ps(Floats{} + HIGHEST, given) : given;
        x = _mm512_max_ps(Floats{} + LOWEST, x);
#else
        Floats x = given;
        if (MAY_BE_LARGE) x = given > HIGHEST ? Floats{} + HIGHEST : given;
        x = x < LOWEST ? Floats{} + LOWEST : x;
#endif
        const Floats shifted = fma_part(x, Floats{} + 1.44269504088896341f, Floats{} + TO_INTEGER);
        const Floats n = shifted - TO_INTEGER;
        Floats y;
        if constexpr (IS_COARSE) {
            const Floats r = fma_part(n, Floats{} - 0.693147182464599609f, x);
            y = fma_part(Floats{} + 0.0415136851f, r, Floats{} + 0.167875916f);
            y = fma_part(y, r, Floats{} + 0.50003022f);
            y = fma_part(y, r, Floats{} + 0.9999668f);
            y = fma_part(y, r, Floats{} + 1.0f);
        } else {
            Floats r = fma_part(n, Floats{} - 0.693359375f, x);
            r = fma_part(n, Floats{} + 2.12194440e-4f, r);
            y = Floats{} + 1.9875691500e-4f;
            y = fma_part(y, r, Floats{} + 1.3981999507e-3f);
            y = fma_part(y, r, Floats{} + 8.3334519073e-3f);
            y = fma_part(y, r, Floats{} + 4.1665795894e-2f);
            y = fma_part(y, r, Floats{} + 1.6666665459e-1f);
            y = fma_part(y, r, Floats{} + 5.0000001201e-1f);
            y = fma_part(y, r * r, r + 1.0f);
        }
#if defined(LOIRE_AVX512)
        const __mmask16 counts = _mm512_cmp_ps_mask(given, Floats{} + LOWEST, _CMP_NLT_UQ);
        result.part[p] = _mm512_maskz_scalef_ps(counts, y, n);
#else
        // n sits in the low bits of shifted; adding it to the exponent field multiplies by 2^n.
        const Floats scaled = (Floats)((Ints)y + ((Ints)shifted << 23));
        const Floats finite = given < LOWEST ? Floats{} : scaled;
        result.part[p] = given == given ? finite : given;
#endif
    }
    return result;
}

// Calls step(Count<count>), for a count of 1 to MOST.
template <int N>
struct Count {
    static constexpr int value = N;
};

template <int MOST, typename Step>
INLINE void for_count(int64_t count, Step step) {
    static_assert(MOST <= 12);
#define LOIRE_COUNT(N) \
    case N: return step(Count<(MOST >= N ? N : 1)>{});
    switch (count) {
        LOIRE_COUNT(12) LOIRE_COUNT(11) LOIRE_COUNT(10) LOIRE_COUNT(9)
        LOIRE_COUNT(8) LOIRE_COUNT(7) LOIRE_COUNT(6) LOIRE_COUNT(5)
        LOIRE_COUNT(4) LOIRE_COUNT(3) LOIRE_COUNT(2) LOIRE_COUNT(1)
    }
#undef LOIRE_COUNT
}

// Calls step(Count<n>, row) for the rows [0, count) in blocks of n rows, MOST at a time.
template <int MOST, typename Step>
INLINE void for_rows(int64_t count, Step step) {
    int64_t row = 0;
    for (; row + MOST <= count; row += MOST) step(Count<MOST>{}, row);
    for_count<MOST>(count - row, [&](auto rows) { step(rows, row); });
}

}  // namespace
}  // namespace loire
