// Numbers out of the block formats of GGUF (ggml), as its own library computes them: in float32,
// scale * code + offset, each operation rounded by itself.
//
// A format says where a block has its codes, and the scale and offset of every 16 of them; the rest
// is the same for all. Half-precision scales times such codes are never float32 denormals, which the
// pool would flush.

#pragma once

#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

constexpr int64_t LARGEST_BLOCK = 256, SCALED = 16;

struct Block {
    alignas(64) int8_t codes[LARGEST_BLOCK];
    float scales[LARGEST_BLOCK / SCALED];
    float offsets[LARGEST_BLOCK / SCALED];

    void scale_all(float scale, float offset) {
        for (int i = 0; i < 2; ++i) scales[i] = scale, offsets[i] = offset;
    }
};

constexpr float NO_OFFSET = -0.0f;  // adding it changes nothing, not even the sign of a zero

// 32 codes of four bits: the lower halves of 16 bytes, then the upper.
INLINE void nibbles(const uint8_t* source, int8_t* codes) {
    for (int i = 0; i < 16; ++i) {
        codes[i] = int8_t(source[i] & 15);
        codes[16 + i] = int8_t(source[i] >> 4);
    }
}

// The same with a fifth bit, that of code i being bit i.
INLINE void nibbles_and_bits(const uint8_t* source, const uint8_t* bits, int8_t* codes) {
    uint32_t fifth;
    __builtin_memcpy(&fifth, bits, sizeof(fifth));
    nibbles(source, codes);
    for (int i = 0; i < 32; ++i) codes[i] = int8_t(codes[i] | (fifth >> i & 1) << 4);
}

INLINE void subtract(int8_t* codes, int count, int zero_code) {
    for (int i = 0; i < count; ++i) codes[i] = int8_t(codes[i] - zero_code);
}

struct Q4_0 {
    static constexpr int64_t BYTES = 18, ELEMENTS = 32;
    INLINE static void read(const uint8_t* source, Block& block) {
        nibbles(source + 2, block.codes);
        subtract(block.codes, 32, 8);
        block.scale_all(half_at(source), NO_OFFSET);
    }
};

struct Q4_1 {
    static constexpr int64_t BYTES = 20, ELEMENTS = 32;
    INLINE static void read(const uint8_t* source, Block& block) {
        nibbles(source + 4, block.codes);
        block.scale_all(half_at(source), half_at(source + 2));
    }
};

struct Q5_0 {
    static constexpr int64_t BYTES = 22, ELEMENTS = 32;
    INLINE static void read(const uint8_t* source, Block& block) {
        nibbles_and_bits(source + 6, source + 2, block.codes);
        subtract(block.codes, 32, 16);
        block.scale_all(half_at(source), NO_OFFSET);
    }
};

struct Q5_1 {
    static constexpr int64_t BYTES = 24, ELEMENTS = 32;
    INLINE static void read(const uint8_t* source, Block& block) {
        nibbles_and_bits(source + 8, source + 4, block.codes);
        block.scale_all(half_at(source), half_at(source + 2));
    }
};

struct Q8_0 {
    static constexpr int64_t BYTES = 34, ELEMENTS = 32;
    INLINE static void read(const uint8_t* source, Block& block) {
        __builtin_memcpy(block.codes, source + 2, 32);
        block.scale_all(half_at(source), NO_OFFSET);
    }
};

// Q4_K and Q5_K: scale and minimum of 8 groups of 32 are six bits each, times one half per block.
INLINE void read_group_scales(const uint8_t* source, Block& block) {
    const float scale = half_at(source), minimum = half_at(source + 2);
    const uint8_t* packed = source + 4;
    for (int i = 0; i < 8; ++i) {
        const uint8_t lower = packed[i % 4], upper = packed[4 + i % 4], mixed = packed[8 + i % 4];
        const int scale_code = i < 4 ? lower & 63 : (mixed & 15) | (lower >> 2 & 48);
        const int minimum_code = i < 4 ? upper & 63 : mixed >> 4 | (upper >> 2 & 48);
        for (int half = 0; half < 2; ++half) {
            block.scales[2 * i + half] = scale * float(scale_code);
            block.offsets[2 * i + half] = -(minimum * float(minimum_code));
        }
    }
}

// 32 bytes hold two groups: the lower halves, then the upper.
INLINE void read_group_codes(const uint8_t* source, Block& block) {
    for (int pair = 0; pair < 4; ++pair)
        for (int i = 0; i < 32; ++i) {
            block.codes[pair * 64 + i] = int8_t(source[pair * 32 + i] & 15);
            block.codes[pair * 64 + 32 + i] = int8_t(source[pair * 32 + i] >> 4);
        }
}

struct Q4_K {
    static constexpr int64_t BYTES = 144, ELEMENTS = 256;
    INLINE static void read(const uint8_t* source, Block& block) {
        read_group_scales(source, block);
        read_group_codes(source + 16, block);
    }
};

struct Q5_K {
    static constexpr int64_t BYTES = 176, ELEMENTS = 256;
    INLINE static void read(const uint8_t* source, Block& block) {
        read_group_scales(source, block);
        read_group_codes(source + 48, block);
        const uint8_t* fifth = source + 16;  // of element i of group g: bit g of byte i
        for (int group = 0; group < 8; ++group)
            for (int i = 0; i < 32; ++i) {
                int8_t& code = block.codes[group * 32 + i];
                code = int8_t(code | (fifth[i] >> group & 1) << 4);
            }
    }
};

struct Q6_K {
    static constexpr int64_t BYTES = 210, ELEMENTS = 256;
    INLINE static void read(const uint8_t* source, Block& block) {
        const uint8_t *lower = source, *upper = source + 128, *scales = source + 192;
        for (int half = 0; half < 2; ++half, lower += 64, upper += 32)
            for (int quarter = 0; quarter < 4; ++quarter)
                for (int i = 0; i < 32; ++i) {
                    const int four = lower[quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
                    const int two = upper[i] >> (quarter * 2) & 3;
                    block.codes[half * 128 + quarter * 32 + i] = int8_t((four | two << 4) - 32);
                }
        const float scale = half_at(source + 208);
        for (int i = 0; i < 16; ++i) {
            block.scales[i] = scale * float(int8_t(scales[i]));
            block.offsets[i] = NO_OFFSET;
        }
    }
};

// With AVX2 and bfloat16, g++ 12 takes the call for one without effect and leaves it out, unless it
// is kept from looking into the function.
#if defined(__GNUC__) && !defined(__clang__)
#define OPAQUE __attribute__((noipa))
#else
#define OPAQUE
#endif

template <typename Format, typename Element>
OPAQUE void dequantize_blocks(const uint8_t* source, int64_t blocks, Element* out) {
    Block block;
    for (; blocks > 0; --blocks, source += Format::BYTES, out += Format::ELEMENTS) {
        Format::read(source, block);
        for (int i = 0; i < Format::ELEMENTS / SCALED; ++i)
            store(out + i * SCALED, load(block.codes + i * SCALED) * broadcast(block.scales[i]) +
                           broadcast(block.offsets[i]));
    }
}

// Piece n is the n-th run of DEQUANTIZED_PER_PIECE elements; the last may be shorter.
template <typename Format, typename Element>
void dequantize_run(const DequantizeArguments& a, int64_t piece) {
    constexpr int64_t RUN = DEQUANTIZED_PER_PIECE / Format::ELEMENTS;
    const int64_t left = a.elements / Format::ELEMENTS - piece * RUN;
    dequantize_blocks<Format>(static_cast<const uint8_t*>(a.blocks) + piece * RUN * Format::BYTES,
                              left < RUN ? left : RUN,
                              static_cast<Element*>(a.out) + piece * DEQUANTIZED_PER_PIECE);
}

template <typename Element>
void dequantize_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const DequantizeArguments*>(untyped);
    switch (a.format) {
        case BlockFormat::Q4_0: return dequantize_run<Q4_0, Element>(a, piece);
        case BlockFormat::Q4_1: return dequantize_run<Q4_1, Element>(a, piece);
        case BlockFormat::Q5_0: return dequantize_run<Q5_0, Element>(a, piece);
        case BlockFormat::Q5_1: return dequantize_run<Q5_1, Element>(a, piece);
        case BlockFormat::Q8_0: return dequantize_run<Q8_0, Element>(a, piece);
        case BlockFormat::Q4_K: return dequantize_run<Q4_K, Element>(a, piece);
        case BlockFormat::Q5_K: return dequantize_run<Q5_K, Element>(a, piece);
        case BlockFormat::Q6_K: return dequantize_run<Q6_K, Element>(a, piece);
    }
}

}  // namespace
}  // namespace loire
