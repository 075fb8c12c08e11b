// Block formats, those of GGUF (ggml) and Loire's own, taken apart: codes, and for every 16 of them a
// scale and perhaps a minimum. loire/kernels/block_formats.py defines them.
//
//     number = value of the code * scale            or            the same + minimum
//
// A format is a struct that says how a block is read, what codes stand for, and how many bits they
// have. Dequantizing, packing and multiplying are written once for all of them.

#pragma once

#include "grids.h"
#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

constexpr int64_t LARGEST_BLOCK = 256, SCALED = 16;

// One block as it lies in a file.
struct Block {
    alignas(64) uint8_t codes[LARGEST_BLOCK];
    uint16_t scale, minimum;  // bits; half precision unless the format says otherwise
    float number;             // the scale, where it is a float
    // Where a format has such: scale and minimum of 16 codes are these times the block's.
    int8_t scale_codes[LARGEST_BLOCK / SCALED];
    int8_t minimum_codes[LARGEST_BLOCK / SCALED];
    int8_t zero;  // a minimum of it times the scale, where that is a float
};

// What the scale of a group is: a number of its own, or a code times the block's number; or a float of
// the block, by itself or times codes, whole numbers or some in FP8; or the block's number by itself, of
// two groups.
enum class ScaleKind { HALF, BFLOAT16, CODE, FLOAT, FLOAT_CODE, FLOAT_FLOAT8, BLOCK_HALF };

// 32 codes of four bits: the lower halves of 16 bytes, then the upper.
INLINE void nibbles(const uint8_t* source, uint8_t* codes) {
    uint64_t pairs[2];
    __builtin_memcpy(pairs, source, sizeof(pairs));
    for (int i = 0; i < 2; ++i) {
        const uint64_t lower = pairs[i] & 0x0f0f0f0f0f0f0f0f;
        const uint64_t upper = pairs[i] >> 4 & 0x0f0f0f0f0f0f0f0f;
        __builtin_memcpy(codes + 8 * i, &lower, sizeof(lower));
        __builtin_memcpy(codes + 16 + 8 * i, &upper, sizeof(upper));
    }
}

// The same with a fifth bit, that of code i being bit i.
INLINE void nibbles_and_bits(const uint8_t* source, const uint8_t* bits, uint8_t* codes) {
    uint32_t fifth;
    __builtin_memcpy(&fifth, bits, sizeof(fifth));
    nibbles(source, codes);
    for (int i = 0; i < 32; ++i) codes[i] = uint8_t(codes[i] | (fifth >> i & 1) << 4);
}

INLINE uint16_t two_bytes(const uint8_t* source) {
    uint16_t bits;
    __builtin_memcpy(&bits, source, sizeof(bits));
    return bits;
}

// What formats have unless they say otherwise.
template <int64_t GIVEN_BYTES, int64_t GIVEN_ELEMENTS, int GIVEN_BITS, int GIVEN_ZERO>
struct Layout {
    static constexpr int64_t BYTES = GIVEN_BYTES, ELEMENTS = GIVEN_ELEMENTS;
    static constexpr int BITS = GIVEN_BITS;
    static constexpr int ZERO = GIVEN_ZERO;  // value of a code: code - ZERO, without a table
    static constexpr ScaleKind SCALE = ELEMENTS == 32 ? ScaleKind::HALF : ScaleKind::CODE;
    static constexpr int GROUPS = 1;         // scales of 32 codes
    static constexpr bool HAS_MINIMUM = false, HAS_TABLE = false;
    static constexpr bool HAS_LEVELS = false;    // rows may have a table of their own
    static constexpr bool IS_FLOAT8 = false;     // codes are numbers, not whole ones
    static constexpr bool SHARES_BYTES = false;  // codes of scale and minimum have four bits each
    static constexpr bool HAS_POWERS = false;    // scales are powers of two
    static constexpr bool HAS_FINE_INPUTS = false;  // rounded to eight times as many numbers
};

struct Q4_0 : Layout<18, 32, 4, 8> {
    INLINE static void read(const uint8_t* source, Block& block) {
        block.scale = two_bytes(source);
        nibbles(source + 2, block.codes);
    }
};

struct Q4_1 : Layout<20, 32, 4, 0> {
    static constexpr bool HAS_MINIMUM = true;
    INLINE static void read(const uint8_t* source, Block& block) {
        block.scale = two_bytes(source), block.minimum = two_bytes(source + 2);
        nibbles(source + 4, block.codes);
    }
};

struct Q5_0 : Layout<22, 32, 5, 16> {
    INLINE static void read(const uint8_t* source, Block& block) {
        block.scale = two_bytes(source);
        nibbles_and_bits(source + 6, source + 2, block.codes);
    }
};

struct Q5_1 : Layout<24, 32, 5, 0> {
    static constexpr bool HAS_MINIMUM = true;
    INLINE static void read(const uint8_t* source, Block& block) {
        block.scale = two_bytes(source), block.minimum = two_bytes(source + 2);
        nibbles_and_bits(source + 8, source + 4, block.codes);
    }
};

struct Q8_0 : Layout<34, 32, 8, 128> {
    INLINE static void read(const uint8_t* source, Block& block) {
        block.scale = two_bytes(source);
        for (int i = 0; i < 32; ++i) block.codes[i] = source[2 + i] ^ 128;
    }
};

// Q4_K and Q5_K: scale and minimum of 8 groups of 32 are six bits each.
INLINE void read_group_scales(const uint8_t* source, Block& block) {
    block.scale = two_bytes(source);
    block.minimum = two_bytes(source + 2) ^ 0x8000;  // it is subtracted
    const uint8_t* packed = source + 4;
    for (int i = 0; i < 8; ++i) {
        const uint8_t lower = packed[i % 4], upper = packed[4 + i % 4], mixed = packed[8 + i % 4];
        const int scale = i < 4 ? lower & 63 : (mixed & 15) | (lower >> 2 & 48);
        const int minimum = i < 4 ? upper & 63 : mixed >> 4 | (upper >> 2 & 48);
        for (int half = 0; half < 2; ++half) {
            block.scale_codes[2 * i + half] = int8_t(scale);
            block.minimum_codes[2 * i + half] = int8_t(minimum);
        }
    }
}

// 32 bytes hold two groups: the lower halves, then the upper.
INLINE void read_group_codes(const uint8_t* source, Block& block) {
    for (int pair = 0; pair < 4; ++pair)
        for (int i = 0; i < 32; ++i) {
            block.codes[pair * 64 + i] = source[pair * 32 + i] & 15;
            block.codes[pair * 64 + 32 + i] = source[pair * 32 + i] >> 4;
        }
}

struct Q4_K : Layout<144, 256, 4, 0> {
    static constexpr bool HAS_MINIMUM = true;
    INLINE static void read(const uint8_t* source, Block& block) {
        read_group_scales(source, block);
        read_group_codes(source + 16, block);
    }
};

struct Q5_K : Layout<176, 256, 5, 0> {
    static constexpr bool HAS_MINIMUM = true;
    INLINE static void read(const uint8_t* source, Block& block) {
        read_group_scales(source, block);
        read_group_codes(source + 48, block);
        const uint8_t* fifth = source + 16;  // of element i of group g: bit g of byte i
        for (int group = 0; group < 8; ++group)
            for (int i = 0; i < 32; ++i) {
                uint8_t& code = block.codes[group * 32 + i];
                code = uint8_t(code | (fifth[i] >> group & 1) << 4);
            }
    }
};

// Of element i of quarter q of each half of a block: bits 2 q and 2 q + 1 of a byte.
INLINE int two_bits(const uint8_t* source, int half, int quarter, int i) {
    return source[half * 32 + i] >> (quarter * 2) & 3;
}

struct Q6_K : Layout<210, 256, 6, 32> {
    static constexpr int GROUPS = 2;
    INLINE static void read(const uint8_t* source, Block& block) {
        for (int half = 0; half < 2; ++half)
            for (int quarter = 0; quarter < 4; ++quarter)
                for (int i = 0; i < 32; ++i) {
                    const int four =
                        source[half * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
                    const int two = two_bits(source + 128, half, quarter, i);
                    block.codes[half * 128 + quarter * 32 + i] = uint8_t(four | two << 4);
                }
        __builtin_memcpy(block.scale_codes, source + 192, 16);
        block.scale = two_bytes(source + 208);
    }
};

struct Q3_K : Layout<110, 256, 3, 4> {
    static constexpr int GROUPS = 2;
    INLINE static void read(const uint8_t* source, Block& block) {
        for (int half = 0; half < 2; ++half)
            for (int quarter = 0; quarter < 4; ++quarter)
                for (int i = 0; i < 32; ++i) {
                    const int third = source[i] >> (half * 4 + quarter) & 1;
                    const int two = two_bits(source + 32, half, quarter, i);
                    block.codes[half * 128 + quarter * 32 + i] = uint8_t(two | third << 2);
                }
        const uint8_t *lower = source + 96, *upper = source + 104;
        for (int i = 0; i < 16; ++i) {
            const int four = lower[i % 8] >> (i / 8 * 4) & 15, two = upper[i % 4] >> (i / 4 * 2) & 3;
            block.scale_codes[i] = int8_t((four | two << 4) - 32);
        }
        block.scale = two_bytes(source + 108);
    }
};

struct Q2_K : Layout<84, 256, 2, 0> {
    static constexpr int GROUPS = 2;
    static constexpr bool HAS_MINIMUM = true, SHARES_BYTES = true, HAS_FINE_INPUTS = true;
    INLINE static void read(const uint8_t* source, Block& block) {
        for (int half = 0; half < 2; ++half)
            for (int quarter = 0; quarter < 4; ++quarter)
                for (int i = 0; i < 32; ++i)
                    block.codes[half * 128 + quarter * 32 + i] =
                        uint8_t(two_bits(source + 16, half, quarter, i));
        for (int i = 0; i < 16; ++i) {
            block.scale_codes[i] = int8_t(source[i] & 15);
            block.minimum_codes[i] = int8_t(source[i] >> 4);
        }
        block.scale = two_bytes(source + 80);
        block.minimum = two_bytes(source + 82) ^ 0x8000;
    }
};

alignas(16) constexpr int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};
alignas(16) constexpr int8_t MXFP4_VALUES[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                 0, -1, -2, -3, -4, -6, -8, -12};

struct IQ4_NL : Layout<18, 32, 4, 0> {
    static constexpr bool HAS_TABLE = true;
    static constexpr const int8_t (&TABLE)[16] = IQ4_VALUES;
    INLINE static void read(const uint8_t* source, Block& block) {
        block.scale = two_bytes(source);
        nibbles(source + 2, block.codes);
    }
};

struct IQ4_XS : Layout<136, 256, 4, 0> {
    static constexpr bool HAS_TABLE = true;
    static constexpr const int8_t (&TABLE)[16] = IQ4_VALUES;
    INLINE static void read(const uint8_t* source, Block& block) {
        block.scale = two_bytes(source);
        const uint32_t upper = two_bytes(source + 2);
        for (int group = 0; group < 8; ++group) {
            const int four = source[4 + group / 2] >> (group % 2 * 4) & 15;
            const int code = (four | (upper >> (2 * group) & 3) << 4) - 32;
            for (int half = 0; half < 2; ++half) block.scale_codes[2 * group + half] = int8_t(code);
            nibbles(source + 8 + group * 16, block.codes + group * 32);
        }
    }
};

// Its scale is a power of two, here halved, as the values of the codes are doubled. (The two smallest
// are no normal numbers and count as zero.)
struct MXFP4 : Layout<17, 32, 4, 0> {
    static constexpr bool HAS_TABLE = true;
    static constexpr const int8_t (&TABLE)[16] = MXFP4_VALUES;
    static constexpr ScaleKind SCALE = ScaleKind::BFLOAT16;
    static constexpr bool HAS_POWERS = true;
    INLINE static void read(const uint8_t* source, Block& block) {
        block.scale = uint16_t(source[0] < 2 ? 0 : (source[0] - 1) << 7);
        nibbles(source + 1, block.codes);
    }
};

INLINE float float_at(const void* source) {
    float number;
    __builtin_memcpy(&number, source, sizeof(number));
    return number;
}

// Codes of the IQ formats, eight or four at once by their index, and then their signs.
template <int COUNT, int BITS>
INLINE void signed_codes(uint16_t packed, const int8_t* values, int signs, uint8_t* codes) {
    for (int i = 0; i < COUNT; ++i) {
        const int value = values[packed >> (BITS * i) & ((1 << BITS) - 1)];
        codes[i] = uint8_t((signs >> i & 1 ? -value : value) + 128);
    }
}

// Of the signs of eight codes seven are stored: an even number is negative.
INLINE int even_signs(int seven) { return seven | __builtin_parity(unsigned(seven)) << 7; }

INLINE uint32_t four_bytes(const uint8_t* source) {
    uint32_t bits;
    __builtin_memcpy(&bits, source, sizeof(bits));
    return bits;
}

// The IQ2 and IQ3 formats: codes of eight bits, a float per block times (2 s + 1) per 16.
template <int64_t BYTES>
struct Grid : Layout<BYTES, 256, 8, 128> {
    static constexpr int GROUPS = 2;
    static constexpr ScaleKind SCALE = ScaleKind::FLOAT_CODE;
    static constexpr bool HAS_FINE_INPUTS = true;

    // Scales of 16 codes, in halves of bytes.
    INLINE static void read_scales(const uint8_t* source, Block& block) {
        for (int i = 0; i < 16; ++i)
            block.scale_codes[i] = int8_t(2 * (source[i / 2] >> (i % 2 * 4) & 15) + 1);
    }
    INLINE static void scale_of_32(int group, int code, Block& block) {
        block.scale_codes[2 * group] = block.scale_codes[2 * group + 1] = int8_t(2 * code + 1);
    }
};

struct IQ2_XXS : Grid<66> {
    INLINE static void read(const uint8_t* source, Block& block) {
        block.number = half_at(source) * 0.125f;
        for (int group = 0; group < 8; ++group) {
            const uint8_t* indices = source + 2 + group * 8;
            const uint32_t rest = four_bytes(indices + 4);
            scale_of_32(group, int(rest >> 28), block);
            for (int i = 0; i < 4; ++i)
                signed_codes<8, 2>(IQ2_XXS_GRID[indices[i]], IQ2_VALUES,
                                   even_signs(rest >> (7 * i) & 127), block.codes + group * 32 + i * 8);
        }
    }
};

struct IQ2_XS : Grid<74> {
    INLINE static void read(const uint8_t* source, Block& block) {
        block.number = half_at(source) * 0.125f;
        read_scales(source + 66, block);
        for (int i = 0; i < 32; ++i) {
            const int both = two_bytes(source + 2 + i * 2);
            signed_codes<8, 2>(IQ2_XS_GRID[both & 511], IQ2_VALUES, even_signs(both >> 9),
                               block.codes + i * 8);
        }
    }
};

struct IQ2_S : Grid<82> {
    INLINE static void read(const uint8_t* source, Block& block) {
        const uint8_t *lower = source + 2, *signs = source + 34, *upper = source + 66;
        block.number = half_at(source) * 0.125f;
        read_scales(source + 74, block);
        for (int i = 0; i < 32; ++i) {
            const int index = lower[i] | (upper[i / 4] >> (i % 4 * 2) & 3) << 8;
            signed_codes<8, 2>(IQ2_S_GRID[index], IQ2_VALUES, signs[i], block.codes + i * 8);
        }
    }
};

struct IQ3_XXS : Grid<98> {
    INLINE static void read(const uint8_t* source, Block& block) {
        block.number = half_at(source) * 0.25f;
        for (int group = 0; group < 8; ++group) {
            const uint32_t rest = four_bytes(source + 66 + group * 4);
            scale_of_32(group, int(rest >> 28), block);
            for (int i = 0; i < 8; ++i) {
                const int signs = even_signs(rest >> (i / 2 * 7) & 127) >> (i % 2 * 4);
                signed_codes<4, 3>(IQ3_XXS_GRID[source[2 + group * 8 + i]], IQ3_XXS_VALUES, signs,
                                   block.codes + group * 32 + i * 4);
            }
        }
    }
};

struct IQ3_S : Grid<110> {
    INLINE static void read(const uint8_t* source, Block& block) {
        const uint8_t *lower = source + 2, *upper = source + 66, *signs = source + 74;
        block.number = half_at(source);
        for (int group = 0; group < 8; ++group)
            scale_of_32(group, source[106 + group / 2] >> (group % 2 * 4) & 15, block);
        for (int i = 0; i < 64; ++i) {
            const int index = lower[i] | (upper[i / 8] >> (i % 8) & 1) << 8;
            signed_codes<4, 3>(IQ3_S_GRID[index], IQ3_S_VALUES, signs[i / 2] >> (i % 2 * 4),
                               block.codes + i * 4);
        }
    }
};

// Loire's own: a float per block, and perhaps a zero point.
template <int64_t GIVEN_ELEMENTS, bool HAS_ZERO>
struct Grouped4 : Layout<4 + HAS_ZERO + GIVEN_ELEMENTS / 2, GIVEN_ELEMENTS, 4, HAS_ZERO ? 0 : 8> {
    static constexpr ScaleKind SCALE = ScaleKind::FLOAT;
    static constexpr bool HAS_MINIMUM = HAS_ZERO;
    INLINE static void read(const uint8_t* source, Block& block) {
        block.number = float_at(source);
        if (HAS_ZERO) block.zero = int8_t(-int(source[4]));
        for (int64_t i = 0; i < GIVEN_ELEMENTS / 32; ++i)
            nibbles(source + 4 + HAS_ZERO + i * 16, block.codes + i * 32);
    }
};
using W4_128 = Grouped4<128, false>;
using W4Z_128 = Grouped4<128, true>;
using W4Z_32 = Grouped4<32, true>;

struct W8_128 : Layout<132, 128, 8, 128> {
    static constexpr ScaleKind SCALE = ScaleKind::FLOAT;
    INLINE static void read(const uint8_t* source, Block& block) {
        block.number = float_at(source);
        for (int i = 0; i < 128; ++i) block.codes[i] = source[4 + i] ^ 128;
    }
};

// Codes in FP8 (e4m3): a sign, four bits of exponent, three of mantissa. Codes that are no numbers do not
// come here.
struct F8_128 : Layout<132, 128, 8, 0> {
    static constexpr ScaleKind SCALE = ScaleKind::FLOAT;
    static constexpr bool IS_FLOAT8 = true;
    INLINE static void read(const uint8_t* source, Block& block) {
        block.number = float_at(source);
        __builtin_memcpy(block.codes, source + 4, ELEMENTS);
    }
};

// NVFP4 of safetensors: codes of MXFP4, and for each 16 a scale in FP8, times a float.
struct NV4_128 : Layout<76, 128, 4, 0> {
    static constexpr int GROUPS = 2;
    static constexpr bool HAS_TABLE = true;
    static constexpr const int8_t (&TABLE)[16] = MXFP4_VALUES;
    static constexpr ScaleKind SCALE = ScaleKind::FLOAT_FLOAT8;
    INLINE static void read(const uint8_t* source, Block& block) {
        block.number = float_at(source);
        __builtin_memcpy(block.scale_codes, source + 4, ELEMENTS / SCALED);
        for (int i = 0; i < 4; ++i) nibbles(source + 12 + i * 16, block.codes + i * 32);
    }
};

// Loire's own for few bits: codes of a palette, and a scale for 64. These palettes are those of weights that
// come without any.
alignas(16) constexpr int8_t PALETTE_2[16] = {-127, -38, 38, 127};
alignas(16) constexpr int8_t PALETTE_3[16] = {-127, -79, -45, -14, 14, 45, 79, 127};
alignas(16) constexpr int8_t PALETTE_4[16] = {-127, -96, -75, -58, -44, -31, -18, -6,
                                              6,    18,  31,  44,  58,  75,  96,  127};

template <int BITS>
struct PaletteBlock : Layout<2 + 8 * BITS, 64, BITS, 0> {
    static constexpr bool HAS_TABLE = true, HAS_LEVELS = true, HAS_FINE_INPUTS = BITS == 2;
    static constexpr ScaleKind SCALE = ScaleKind::BLOCK_HALF;
    INLINE static void read(const uint8_t* source, Block& block) {
        block.scale = two_bytes(source);
        for (int half = 0; half < 2; ++half) {
            uint8_t* codes = block.codes + half * 32;
            if constexpr (BITS == 4) {
                nibbles(source + 2 + half * 16, codes);
            } else {
                for (int i = 0; i < 32; ++i) {
                    const int two = source[2 + half * 8 + i % 8] >> (i / 8 * 2) & 3;
                    const int third = BITS == 3 ? source[18 + half * 4 + i / 8] >> (i % 8) & 1 : 0;
                    codes[i] = uint8_t(two | third << 2);
                }
            }
        }
    }
};

struct P2 : PaletteBlock<2> { static constexpr const int8_t (&TABLE)[16] = PALETTE_2; };
struct P3 : PaletteBlock<3> { static constexpr const int8_t (&TABLE)[16] = PALETTE_3; };
struct P4 : PaletteBlock<4> { static constexpr const int8_t (&TABLE)[16] = PALETTE_4; };

// The numbers of codes in FP8, in the lowest byte of each lane. All of them are bfloat16, too.
INLINE Vec16 float8_numbers(const Int16& codes) {
    Vec16 result;
    EACH_PART {
        const Words code = (Words)codes.part[p], rest = code & 0x7f;
        const Floats normal = (Floats)((rest << 20) + (120u << 23));
        const Floats denormal = __builtin_convertvector((Ints)rest, Floats) * 0x1p-9f;
        const Floats magnitude = rest < 8u ? denormal : normal;
        result.part[p] = (Floats)((Words)magnitude | (code & 0x80) << 24);
    }
    return result;
}

template <ScaleKind KIND>
INLINE float scale_number(uint16_t bits) {
    if constexpr (KIND != ScaleKind::BFLOAT16) return half_at(&bits);
    const uint32_t wide = uint32_t(bits) << 16;
    float number;
    __builtin_memcpy(&number, &wide, sizeof(number));
    return number;
}

// Scale and minimum of the group of 16 codes.
template <typename Format>
INLINE float scale_of(const Block& block, int group) {
    if constexpr (Format::SCALE == ScaleKind::FLOAT) return block.number;
    if constexpr (Format::SCALE == ScaleKind::FLOAT_CODE)
        return block.number * float(block.scale_codes[group]);
    if constexpr (Format::SCALE == ScaleKind::FLOAT_FLOAT8)
        return block.number * float8_numbers(broadcast_int(block.scale_codes[group])).part[0][0];
    const float number = scale_number<Format::SCALE>(block.scale);
    return Format::SCALE == ScaleKind::CODE ? number * float(block.scale_codes[group]) : number;
}

// Of formats without one it is what changes nothing, not even the sign of a zero.
template <typename Format>
INLINE float minimum_of(const Block& block, int group) {
    if constexpr (!Format::HAS_MINIMUM) return -0.0f;
    if constexpr (Format::SCALE == ScaleKind::FLOAT) return block.number * float(block.zero);
    const float number = half_at(&block.minimum);
    return Format::SCALE == ScaleKind::CODE ? number * float(block.minimum_codes[group]) : number;
}

// What 16 codes stand for.
template <typename Format>
INLINE void values_of(const uint8_t* codes, int8_t (&values)[SCALED]) {
    for (int i = 0; i < SCALED; ++i) {
        if constexpr (Format::HAS_TABLE) values[i] = Format::TABLE[codes[i]];
        else values[i] = int8_t(codes[i] - Format::ZERO);
    }
}

// What 16 codes stand for, as floats.
template <typename Format>
INLINE Vec16 numbers_of(const uint8_t* codes) {
    int8_t values[SCALED];
    if constexpr (Format::IS_FLOAT8) {
        Int16 given;
        EACH_PART given.part[p] = to_ints(reinterpret_cast<const int8_t*>(codes) + p * LANES);
        return float8_numbers(given);
    }
    values_of<Format>(codes, values);
    return load(values);
}

// Calls call(Format{}) with the struct of a format.
template <typename Call>
INLINE auto with_format(BlockFormat format, Call call) {
    switch (format) {
        case BlockFormat::Q4_0: return call(Q4_0{});
        case BlockFormat::Q4_1: return call(Q4_1{});
        case BlockFormat::Q5_0: return call(Q5_0{});
        case BlockFormat::Q5_1: return call(Q5_1{});
        case BlockFormat::Q8_0: return call(Q8_0{});
        case BlockFormat::Q2_K: return call(Q2_K{});
        case BlockFormat::Q3_K: return call(Q3_K{});
        case BlockFormat::Q4_K: return call(Q4_K{});
        case BlockFormat::Q5_K: return call(Q5_K{});
        case BlockFormat::Q6_K: return call(Q6_K{});
        case BlockFormat::IQ2_XXS: return call(IQ2_XXS{});
        case BlockFormat::IQ2_XS: return call(IQ2_XS{});
        case BlockFormat::IQ2_S: return call(IQ2_S{});
        case BlockFormat::IQ3_XXS: return call(IQ3_XXS{});
        case BlockFormat::IQ3_S: return call(IQ3_S{});
        case BlockFormat::IQ4_NL: return call(IQ4_NL{});
        case BlockFormat::IQ4_XS: return call(IQ4_XS{});
        case BlockFormat::MXFP4: return call(MXFP4{});
        case BlockFormat::W4_128: return call(W4_128{});
        case BlockFormat::W4Z_128: return call(W4Z_128{});
        case BlockFormat::W4Z_32: return call(W4Z_32{});
        case BlockFormat::W8_128: return call(W8_128{});
        case BlockFormat::P2: return call(P2{});
        case BlockFormat::P3: return call(P3{});
        case BlockFormat::P4: return call(P4{});
        case BlockFormat::F8_128: return call(F8_128{});
        case BlockFormat::NV4_128: return call(NV4_128{});
    }
    __builtin_unreachable();
}

}  // namespace
}  // namespace loire
