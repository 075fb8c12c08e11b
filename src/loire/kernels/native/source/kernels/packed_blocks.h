// How weights in a block format are packed: their bits as they are, in another order.
//
// Panels of 32 outputs; in a panel, where rows may have levels of their own, those of each eight outputs
// (ALIKE), 16 bytes as dot() takes them; then steps of as many inputs as a block has (32 to 256). A step is
//     where scales are codes: the blocks' scales, and then their minimums, of 32 outputs (halves)
//     where they are floats: those of 32 outputs, and then their zero points, negated, in 64 bytes
//     for each 32 inputs: the codes, then scales, then minimums of 32 outputs, for each of the format's
//     groups: numbers of 16 bits, or codes of 8 bits (which the step's are multiplied with)
// Codes are in words: lanes of four bytes, one per output. Their bits lie apart:
//     the lower four   4 words; byte j of word i has in its lower half input 4 i + j, in the upper
//                      half the input 16 later
//     two              2 words; in byte j of word i from bit 2 k on input 16 i + 4 k + j
//     one              1 word; in byte j at bit k input 4 k + j
//     eight            8 words
// Five bits are four and one, six are four and two, three are two and one.

#pragma once

#include "block_formats.h"
#include "norm.h"
#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

constexpr int64_t LANE = 4, WORD_BYTES = PANEL * LANE;

// Codes of 32 inputs.
template <int BITS>
struct PackedCodes {
    static constexpr bool HAS_EIGHT = BITS == 8, HAS_FOUR = BITS >= 4 && BITS < 8;
    static constexpr bool HAS_TWO = BITS == 2 || BITS == 3 || BITS == 6;
    static constexpr bool HAS_ONE = BITS == 3 || BITS == 5;
    static constexpr int TWO_AT = HAS_FOUR ? 4 : 0, ONE_AT = TWO_AT + (HAS_TWO ? 2 : 0);
    static constexpr int TWO_SHIFT = HAS_FOUR ? 4 : 0, ONE_SHIFT = HAS_FOUR ? 4 : 2;
    static constexpr int64_t BYTES = BITS * WORD_BYTES;

    // Of inputs (4 word, .., 4 word + 3) and 16 outputs, whose lanes begin at `lanes`.
    static INLINE Int16 load(const char* lanes, int word) {
        if constexpr (HAS_EIGHT) return load_ints(lanes + word * WORD_BYTES);
        Int16 codes = broadcast_int(0);
        if constexpr (HAS_FOUR) {
            const Int16 pairs = load_ints(lanes + word % 4 * WORD_BYTES);
            EACH_PART codes.part[p] = (Ints)((Words)pairs.part[p] >> (word / 4 * 4)) & 0x0f0f0f0f;
        }
        if constexpr (HAS_TWO) {
            const Int16 twos = load_ints(lanes + (TWO_AT + word / 4) * WORD_BYTES);
            EACH_PART codes.part[p] |=
                ((Ints)((Words)twos.part[p] >> (word % 4 * 2)) & 0x03030303) << TWO_SHIFT;
        }
        if constexpr (HAS_ONE) {
            const Int16 ones = load_ints(lanes + ONE_AT * WORD_BYTES);
            EACH_PART codes.part[p] |=
                ((Ints)((Words)ones.part[p] >> word) & 0x01010101) << ONE_SHIFT;
        }
        return codes;
    }

    // Of one output, whose lane in the first word is `lane`. Four codes at a time, as each byte of a
    // word is made of the same byte of others.
    static INLINE void put(char* lane, const uint8_t* codes) {
        uint32_t given[8];
        __builtin_memcpy(given, codes, sizeof(given));
        const auto store_word = [&](int at, uint32_t bits) {
            __builtin_memcpy(lane + at * WORD_BYTES, &bits, sizeof(bits));
        };
        if constexpr (HAS_EIGHT)
            for (int word = 0; word < 8; ++word) store_word(word, given[word]);
        if constexpr (HAS_FOUR)
            for (int word = 0; word < 4; ++word)
                store_word(word, (given[word] & 0x0f0f0f0f) | (given[word + 4] & 0x0f0f0f0f) << 4);
        if constexpr (HAS_TWO)
            for (int word = 0; word < 2; ++word) {
                uint32_t twos = 0;
                for (int k = 0; k < 4; ++k)
                    twos |= (given[4 * word + k] >> TWO_SHIFT & 0x03030303) << 2 * k;
                store_word(TWO_AT + word, twos);
            }
        if constexpr (HAS_ONE) {
            uint32_t ones = 0;
            for (int word = 0; word < 8; ++word)
                ones |= (given[word] >> ONE_SHIFT & 0x01010101) << word;
            store_word(ONE_AT, ones);
        }
    }

    static INLINE void get(const char* lane, uint8_t* codes) {
        for (int i = 0; i < STEP; ++i) {
            const int word = i / 4, byte = i % 4;
            const auto at = [&](int index) { return int(uint8_t(lane[index * WORD_BYTES + byte])); };
            int code = 0;
            if constexpr (HAS_EIGHT) code = at(word);
            if constexpr (HAS_FOUR) code = at(word % 4) >> (word / 4 * 4) & 15;
            if constexpr (HAS_TWO) code |= (at(TWO_AT + word / 4) >> (word % 4 * 2) & 3) << TWO_SHIFT;
            if constexpr (HAS_ONE) code |= (at(ONE_AT) >> word & 1) << ONE_SHIFT;
            codes[i] = uint8_t(code);
        }
    }
};

constexpr int64_t ALIKE = 8;  // outputs that have the same levels
constexpr uint8_t LEVEL_BITS = SIGNED_CODES ? 0 : 128;  // that levels differ in from what dot() takes

// What the codes of 16 * VECTORS outputs of a panel stand for, as dot() takes it.
template <typename Stored, int VECTORS, bool HAS_LEVELS = Stored::HAS_LEVELS>
struct Meanings {
    static constexpr int64_t BYTES = 0;  // at the head of a panel
    // Of outputs from `column` on.
    INLINE Meanings(const char*, int64_t) {}

    // Of a vector's codes, whose lanes begin at `lanes`.
    INLINE Int16 codes(int, const char* lanes, int word) const {
        const Int16 found = PackedCodes<Stored::BITS>::load(lanes, word);
        if constexpr (Stored::HAS_TABLE) return look_up(Stored::TABLE, found);
        return found;
    }
};

template <typename Stored, int VECTORS>
struct Meanings<Stored, VECTORS, true> {
    static constexpr int64_t BYTES = PANEL / ALIKE * LEVELS;
    Int16 tables[VECTORS];  // of each four outputs, whose codes are 16 bytes

    INLINE Meanings(const char* panel, int64_t column) {
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v)
            tables[v] = two_tables(panel + (column + v * 16) / ALIKE * LEVELS);
    }

    INLINE Int16 codes(int v, const char* lanes, int word) const {
        return look_up(tables[v], PackedCodes<Stored::BITS>::load(lanes, word));
    }
};

template <typename Stored>
constexpr int64_t LEVELS_BYTES = Meanings<Stored, 1>::BYTES;

// Which of those stands for zero.
template <typename Stored>
constexpr int DOT_ZERO = Stored::HAS_TABLE ? (SIGNED_CODES ? 0 : 128)
                         : Stored::BITS == 8 && SIGNED_CODES ? 0
                                                             : Stored::ZERO;

template <typename Format>
struct PackedBlocks {
    using Codes = PackedCodes<Format::BITS>;
    static constexpr bool IS_FLOAT = Format::SCALE == ScaleKind::FLOAT;
    static constexpr bool HAS_FLOAT8 = Format::SCALE == ScaleKind::FLOAT_FLOAT8;
    static constexpr bool HAS_CODES = Format::SCALE == ScaleKind::CODE ||
                                      Format::SCALE == ScaleKind::FLOAT_CODE || HAS_FLOAT8;
    static constexpr bool IS_BLOCK_HALF = Format::SCALE == ScaleKind::BLOCK_HALF;
    // Numbers of two bytes at the head.
    static constexpr bool HAS_HALVES = Format::SCALE == ScaleKind::CODE || IS_BLOCK_HALF;
    static constexpr int64_t PARTS_OF_STEP = Format::ELEMENTS / STEP, GROUPS = Format::GROUPS;
    static constexpr int64_t NUMBERS_BYTES = PANEL * 2;  // of 32 outputs
    static constexpr int64_t FLOATS_BYTES = PANEL * 4, ZEROS_BYTES = 64;
    static constexpr int64_t SCALE_BYTES =
        IS_FLOAT || IS_BLOCK_HALF ? 0 : HAS_CODES ? PANEL * GROUPS : NUMBERS_BYTES;
    static constexpr int64_t SIDES = Format::HAS_MINIMUM ? 2 : 1;
    static constexpr int64_t HEAD_BYTES = HAS_HALVES ? SIDES * NUMBERS_BYTES
                                          : IS_FLOAT
                                              ? FLOATS_BYTES + (SIDES - 1) * ZEROS_BYTES
                                              : HAS_CODES ? FLOATS_BYTES : 0;
    static constexpr int64_t PART_BYTES =
        Codes::BYTES + (Format::SHARES_BYTES ? 1 : SIDES) * SCALE_BYTES;
    static constexpr int64_t BYTES = HEAD_BYTES + PARTS_OF_STEP * PART_BYTES;

    static INLINE const char* part(const char* step, int64_t number) {
        return step + HEAD_BYTES + number * PART_BYTES;
    }

    // Of scales, or (side 1) of minimums, and 16 outputs.
    static INLINE Vec16 codes(const char* found, int side) {
        const auto* bytes = reinterpret_cast<const int8_t*>(found);
        if constexpr (HAS_FLOAT8) {
            Int16 given;
            EACH_PART given.part[p] = to_ints(bytes + p * LANES);
            return float8_numbers(given);
        }
        if constexpr (!Format::SHARES_BYTES) return load(bytes);
        Vec16 result;
        EACH_PART result.part[p] = __builtin_convertvector(
            to_ints(bytes + p * LANES) >> (side * 4) & 15, Floats);
        return result;
    }

    // Scales, or (side 1) minimums, of a group of inputs and 16 outputs from `output` on.
    static INLINE Vec16 beside(const char* step, const char* part, int side, int group,
                               int64_t output) {
        if constexpr (IS_BLOCK_HALF) return load_halves(step + output * 2);
        if constexpr (IS_FLOAT) {
            const Vec16 scales = load(reinterpret_cast<const float*>(step + output * 4));
            if (side == 0) return scales;
            return scales * load(reinterpret_cast<const int8_t*>(step + FLOATS_BYTES + output));
        }
        const char* found = part + Codes::BYTES + (Format::SHARES_BYTES ? 0 : side * SCALE_BYTES);
        if constexpr (HAS_HALVES)
            return load_halves(step + side * NUMBERS_BYTES + output * 2) *
                   codes(found + group * PANEL + output, side);
        else if constexpr (HAS_CODES)
            return load(reinterpret_cast<const float*>(step + output * 4)) *
                   codes(found + group * PANEL + output, side);
        else if constexpr (Format::SCALE == ScaleKind::HALF)
            return load_halves(found + output * 2);
        else
            return load(reinterpret_cast<const bfloat16*>(found + output * 2));
    }

    // One output of a step; its bytes have only zeros.
    static INLINE void put(const Block& block, char* step, int64_t output) {
        const auto number = [&](char* at, uint16_t bits) {
            __builtin_memcpy(at + output * 2, &bits, sizeof(bits));
        };
        if constexpr (HAS_HALVES) {
            number(step, block.scale);
            if constexpr (Format::HAS_MINIMUM) number(step + NUMBERS_BYTES, block.minimum);
        } else if constexpr (IS_FLOAT || HAS_CODES) {
            __builtin_memcpy(step + output * 4, &block.number, sizeof(block.number));
            if constexpr (Format::HAS_MINIMUM) step[FLOATS_BYTES + output] = char(block.zero);
        }
        for (int64_t p = 0; p < PARTS_OF_STEP; ++p) {
            char* part = step + HEAD_BYTES + p * PART_BYTES;
            Codes::put(part + output * LANE, block.codes + p * STEP);
            char* scales = part + Codes::BYTES;
            if constexpr (HAS_CODES) {
                for (int64_t group = 0; group < GROUPS; ++group) {
                    const int64_t given = p * 2 + group, at = group * PANEL + output;
                    scales[at] = char(block.scale_codes[given]);
                    if constexpr (Format::SHARES_BYTES)
                        scales[at] = char(scales[at] | block.minimum_codes[given] << 4);
                    else if constexpr (Format::HAS_MINIMUM)
                        scales[SCALE_BYTES + at] = char(block.minimum_codes[given]);
                }
            } else if constexpr (SCALE_BYTES > 0) {
                number(scales, block.scale);
                if constexpr (Format::HAS_MINIMUM) number(scales + SCALE_BYTES, block.minimum);
            }
        }
    }

    static INLINE void get(const char* step, int64_t output, Block& block) {
        const auto number = [&](const char* at) {
            return two_bytes(reinterpret_cast<const uint8_t*>(at + output * 2));
        };
        if constexpr (IS_FLOAT || (HAS_CODES && !HAS_HALVES)) {
            block.number = float_at(step + output * 4);
            if constexpr (Format::HAS_MINIMUM) block.zero = int8_t(step[FLOATS_BYTES + output]);
        } else {
            const char* numbers = HAS_HALVES ? step : part(step, 0) + Codes::BYTES;
            block.scale = number(numbers);
            if constexpr (Format::HAS_MINIMUM) block.minimum = number(numbers + NUMBERS_BYTES);
        }
        for (int64_t p = 0; p < PARTS_OF_STEP; ++p) {
            Codes::get(part(step, p) + output * LANE, block.codes + p * STEP);
            if constexpr (HAS_CODES)
                for (int64_t half = 0; half < 2; ++half) {
                    const char* scales = part(step, p) + Codes::BYTES;
                    const int64_t at = (GROUPS == 2 ? half * PANEL : 0) + output;
                    block.scale_codes[p * 2 + half] = int8_t(scales[at]);
                    if constexpr (Format::SHARES_BYTES) {
                        block.scale_codes[p * 2 + half] = int8_t(scales[at] & 15);
                        block.minimum_codes[p * 2 + half] = int8_t(scales[at] >> 4 & 15);
                    } else if constexpr (Format::HAS_MINIMUM)
                        block.minimum_codes[p * 2 + half] = int8_t(scales[SCALE_BYTES + at]);
                }
        }
    }
};

// Codes of eight bits are kept as dot() can take them.
template <typename Format>
INLINE void to_dot_codes(uint8_t* codes) {
    if constexpr (Format::BITS == 8 && SIGNED_CODES && !Format::IS_FLOAT8)
        for (int64_t i = 0; i < Format::ELEMENTS; ++i) codes[i] ^= 128;
}

// The levels of a panel's outputs, those of each eight the first one's.
template <typename Format>
INLINE void put_levels(const PackArguments& a, int64_t panel, char* packed) {
    for (int64_t lane = 0; lane < PANEL; lane += ALIKE) {
        const int8_t* levels = a.levels(panel * PANEL + lane);
        if (levels == nullptr) levels = Format::TABLE;
        for (int64_t i = 0; i < LEVELS; ++i)
            packed[lane / ALIKE * LEVELS + i] = char(uint8_t(levels[i]) ^ LEVEL_BITS);
    }
}

// What 16 codes of an output of a panel stand for, as floats.
template <typename Format>
INLINE Vec16 packed_numbers(const char* panel, int64_t output, const uint8_t* codes) {
    if constexpr (!Format::HAS_LEVELS) return numbers_of<Format>(codes);
    const char* levels = panel + output / ALIKE * LEVELS;
    int8_t values[SCALED];
    for (int i = 0; i < SCALED; ++i) values[i] = int8_t(uint8_t(levels[codes[i]]) ^ LEVEL_BITS);
    return load(values);
}

template <typename Format>
void pack_blocks_piece(const void* untyped, int64_t panel, Scratch&) {
    const auto& a = *static_cast<const PackArguments*>(untyped);
    using Packed = PackedBlocks<Format>;
    char* packed = a.packed + panel * a.panel_bytes;
    __builtin_memset(packed, 0, a.panel_bytes);
    if constexpr (Format::HAS_LEVELS) put_levels<Format>(a, panel, packed);
    packed += LEVELS_BYTES<Format>;
    for (int64_t lane = 0; lane < PANEL; ++lane) {
        const auto* row = static_cast<const uint8_t*>(a.row(panel * PANEL + lane, 1));
        if (row == nullptr) continue;
        for (int64_t step = 0; step < a.steps; ++step) {
            Block block;
            Format::read(row + step * Format::BYTES, block);
            to_dot_codes<Format>(block.codes);
            Packed::put(block, packed + step * Packed::BYTES, lane);
        }
    }
}

// Rows of a packed weight as numbers, row by row, and normalised: what embed_piece() does with a table.
template <typename Element, typename Format>
void embed_blocks_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const EmbedArguments*>(untyped);
    using Packed = PackedBlocks<Format>;
    const Vec16 table_scale = broadcast(a.table_scale);
    const int64_t steps = a.size / Format::ELEMENTS;
    const int64_t panel_bytes = LEVELS_BYTES<Format> + steps * Packed::BYTES;
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const int64_t found = a.token_ids[t];
        const char* panel = static_cast<const char*>(a.table) + found / PANEL * panel_bytes;
        float* row = a.residual + t * a.size;
        for (int64_t step = 0; step < steps; ++step) {
            Block block;
            Packed::get(panel + LEVELS_BYTES<Format> + step * Packed::BYTES, found % PANEL, block);
            to_dot_codes<Format>(block.codes);
            for (int i = 0; i < Format::ELEMENTS / SCALED; ++i) {
                const Vec16 number =
                    packed_numbers<Format>(panel, found % PANEL, block.codes + i * SCALED) *
                        broadcast(scale_of<Format>(block, i)) +
                    broadcast(minimum_of<Format>(block, i));
                store(row + step * Format::ELEMENTS + i * SCALED, number * table_scale);
            }
        }
        normalise(row, a.weight, a.size, a.eps, static_cast<Element*>(a.out) + t * a.size);
    }
}

}  // namespace
}  // namespace loire
