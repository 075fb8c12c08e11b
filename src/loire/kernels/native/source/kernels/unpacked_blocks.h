// Weights in blocks whose codes are unpacked once for many tokens: a chunk of a panel at a time, which
// stays in the L1 cache while all tokens of the piece pass by. What linear_blocks.h defines is computed
// with fewer multiplications than it has:
//     number * unit     The whole numbers are added up from the bits of the float 1.5 * 2^23 units on,
//                       whose last digit is a unit. Taken as a float, less that one, the sum is the
//                       product, which is exact.
//     scale * multiple  A token's multiple is one of eight, so a chunk has a line of products for each.
//                       Where the weight's scale is a power of two, it is any, and the product has the
//                       bits of both.

#pragma once

#include "linear.h"
#include "operations.h"
#include "packed_blocks.h"
#include "rounded_steps.h"
#include "vec16.h"
#if defined(LOIRE_AMX)
#include "linear_quantized_amx.h"
#endif

namespace loire {
namespace {

constexpr int64_t MULTIPLES = 8;    // 1, 1.125 .. 1.875
constexpr int64_t CHUNK_PARTS = 8;  // of 32 inputs each
constexpr int64_t UNPACKED_CODES = PANEL * STEP, UNPACKED_WORD = PANEL * LANE;

// 32 inputs of one token: whole numbers times a scale, which is a multiple of a power of two, the unit.
// GROUPS: of inputs whose products have sums of their own. HAS_POWERS, IS_FINE: as the weight's format.
template <int GROUPS, bool HAS_MINIMUM, bool HAS_POWERS, bool IS_FINE>
struct BlockStep {
    int8_t x[(IS_FINE ? 2 : 1) * STEP];  // upper places, lower places
    float multiple;
    int32_t line;  // of the multiple: where it begins in UnpackedPart::scales. HAS_POWERS: its digits
    float start;   // 1.5 * 2^23 units, or NaN
    // Of x in each group: its sum times the scale, where weights have minimums. Otherwise what a
    // number begins with: the bits of start, less the sum times the code that stands for zero, in the
    // upper place.
    Either<HAS_MINIMUM, float, int32_t> sums[GROUPS];

    static constexpr int PLACE = IS_FINE ? FINE_BITS : 0;  // of upper ones

    template <int ZERO>
    INLINE void keep(const RoundedStep& rounded) {
        static_assert(ZERO == 0 || !HAS_MINIMUM);
        static_assert(ZERO % (1 << PLACE) == 0);
        uint32_t bits;
        __builtin_memcpy(&bits, &rounded.scale, sizeof(bits));
        const uint32_t exponent = bits >> 23, digits = bits & 0x7fffff;
        const bool finite = rounded.scale == rounded.scale;
        const uint32_t start_bits = finite ? (exponent + 23) << 23 | 0x400000 : 0x7fc00000;
        const uint32_t multiple_bits = 127u << 23 | digits;
        __builtin_memcpy(&multiple, &multiple_bits, sizeof(multiple));
        line = int32_t(HAS_POWERS ? digits : (digits >> 20) * GROUPS * PANEL);
        __builtin_memcpy(&start, &start_bits, sizeof(start));
        for (int group = 0; group < GROUPS; ++group) {
            const int32_t sum = GROUPS == 2 ? rounded.sums[group] : rounded.sums[0] + rounded.sums[1];
            if constexpr (HAS_MINIMUM) sums[group] = float(sum) * rounded.scale;
            else sums[group] = (int32_t(start_bits) - ZERO * sum) >> PLACE;
        }
    }

    INLINE Int16 first_number(int group) const {
        if constexpr (!HAS_MINIMUM) return broadcast_int(sums[group]);
        if constexpr (!IS_FINE) return as_ints(broadcast(start));
        int32_t bits;
        __builtin_memcpy(&bits, &start, sizeof(bits));
        return broadcast_int(bits >> PLACE);
    }

    // number: as it was added up, from first_number() on.
    INLINE Vec16 in_units(const Int16& number) const { return as_floats(number) - broadcast(start); }

    // Of UnpackedPart::scales, times the multiple. (A power that is zero becomes a denormal number, which
    // is flushed.)
    INLINE Vec16 scales(const float* lines) const {
        if constexpr (HAS_POWERS) return as_floats(load_ints(lines) | broadcast_int(line));
        return load(lines + line);
    }
};

// What 32 inputs of a panel have beside their codes, of 32 outputs in each group.
template <int GROUPS, bool HAS_MINIMUM, bool HAS_POWERS>
struct UnpackedPart {
    float scales[(HAS_POWERS ? 1 : MULTIPLES) * GROUPS * PANEL];  // times each multiple
    float minimums[HAS_MINIMUM ? GROUPS * PANEL : 16];
};

// What formats that are unpacked alike share. LINES: of what comes next, fetched with each word of codes.
template <int GIVEN_GROUPS, bool GIVEN_MINIMUM, bool GIVEN_POWERS, bool GIVEN_FINE, int GIVEN_LINES>
struct UnpackedKind {
    static constexpr int GROUPS = GIVEN_GROUPS, LINES = GIVEN_LINES;
    static constexpr bool HAS_MINIMUM = GIVEN_MINIMUM, HAS_POWERS = GIVEN_POWERS;
    static constexpr int PLACES = GIVEN_FINE ? 2 : 1;
    static constexpr int64_t FETCHED_PER_PART = LINES * 8 * 64;
    using Part = UnpackedPart<GROUPS, HAS_MINIMUM, HAS_POWERS>;
    using Step = BlockStep<GROUPS, HAS_MINIMUM, HAS_POWERS, GIVEN_FINE>;
};

template <typename Stored>
struct UnpackedChunk {
    using Packed = PackedBlocks<Stored>;
    using Head = Meanings<Stored, PANEL / 16>;
    // Whether codes lie in the packed weight as they would lie here.
    static constexpr bool IN_PLACE =
        Stored::BITS == 8 && !Stored::HAS_TABLE && Packed::HEAD_BYTES == 0;
    static constexpr int64_t STEPS = CHUNK_PARTS / Packed::PARTS_OF_STEP;
    static constexpr int64_t PACKED_BYTES = STEPS * Packed::BYTES;
    using Kind = UnpackedKind<Stored::GROUPS, Stored::HAS_MINIMUM, Stored::HAS_POWERS,
                              Stored::HAS_FINE_INPUTS, PACKED_BYTES < 8192 ? 1 : 2>;
    using Part = typename Kind::Part;

    alignas(64) Part parts[CHUNK_PARTS];
    alignas(64) char codes[IN_PLACE ? 64 : CHUNK_PARTS * UNPACKED_CODES];

    // The first `count` parts from a step on. Fetches what the passes will not of the next chunk.
    INLINE void unpack(Head head, const char* packed, int64_t count) {
        constexpr int64_t LEFT = PACKED_BYTES - CHUNK_PARTS * Kind::FETCHED_PER_PART;
        const char* rest = packed + 2 * PACKED_BYTES - LEFT;
        for (int64_t p = 0; p < count; ++p, rest += LEFT / CHUNK_PARTS) {
            for (int64_t line = 0; line < LEFT / CHUNK_PARTS; line += 64)
                __builtin_prefetch(rest + line);
            const char* step = packed + p / Packed::PARTS_OF_STEP * Packed::BYTES;
            const char* part = Packed::part(step, p % Packed::PARTS_OF_STEP);
            if constexpr (!IN_PLACE) unpack_codes(head, part, codes + p * UNPACKED_CODES);
            unpack_beside(step, part, parts[p]);
        }
    }

    static INLINE void unpack_codes(Head head, const char* part, char* target) {
#pragma GCC unroll 2
        for (int64_t output = 0; output < PANEL; output += 16)
#pragma GCC unroll 8
            for (int word = 0; word < 8; ++word)
                store_ints(target + word * UNPACKED_WORD + output * LANE,
                           head.codes(int(output / 16), part + output * LANE, word));
    }

    static INLINE void unpack_beside(const char* step, const char* part, Part& target) {
        for (int group = 0; group < Kind::GROUPS; ++group)
            for (int64_t output = 0; output < PANEL; output += 16) {
                float* scales = target.scales + group * PANEL + output;
                const Vec16 scale = Packed::beside(step, part, 0, group, output);
#pragma GCC unroll 8
                for (int m = 0; m < (Kind::HAS_POWERS ? 1 : MULTIPLES); ++m)
                    store(scales + m * Kind::GROUPS * PANEL,
                          scale * broadcast(1.0f + float(m) * (1.0f / MULTIPLES)));
                if constexpr (Kind::HAS_MINIMUM)
                    store(target.minimums + group * PANEL + output,
                          Packed::beside(step, part, 1, group, output));
            }
    }
};

// Some parts of a chunk, as a product takes them.
template <typename Kind>
struct UnpackedParts {
    const char* codes;  // of the first; those of the others lie code_stride bytes apart
    int64_t code_stride;
    const typename Kind::Part* beside;
    int64_t count;
    const char* ahead;  // what is fetched meanwhile
};

// Takes the chains of ROWS tokens times 16 * VECTORS outputs from `column` on, in sums
// [tokens][PANEL], some parts on. x: of the first token, those of the next part `block` further.
template <typename Kind, int ROWS, int VECTORS>
void multiply_unpacked(const UnpackedParts<Kind>& given, int64_t column,
                       const typename Kind::Step* x, int64_t block, float* sums) {
    constexpr int GROUPS = Kind::GROUPS, LINES = Kind::LINES;
    const char *codes = given.codes + column * LANE, *ahead = given.ahead;
    const auto* beside = given.beside;
    constexpr int WORDS = 8 / GROUPS;
    Vec16 chains[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) chains[r][v] = load(sums + r * PANEL + v * 16);
    for (int64_t part = 0; part < given.count; ++part) {
#pragma GCC unroll 2
        for (int group = 0; group < GROUPS; ++group) {
            Int16 numbers[ROWS][VECTORS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v) numbers[r][v] = x[r].first_number(group);
#pragma GCC unroll 2
            for (int place = 0; place < Kind::PLACES; ++place) {
                if (place > 0) to_lower_place(numbers);
#pragma GCC unroll 8
                for (int word = group * WORDS; word < group * WORDS + WORDS; ++word) {
                    if (place == 0) fetch<LINES * 64, false>(ahead + word * LINES * 64);
                    Int16 four_codes[VECTORS];
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; ++v)
                        four_codes[v] = load_ints(codes + word * UNPACKED_WORD + v * 64);
                    add_word<ROWS>(four_codes, place * 8 + word, x, numbers);
                }
            }
            const int64_t at = group * PANEL + column;
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v)
                    chains[r][v] = fma(x[r].in_units(numbers[r][v]),
                                       x[r].scales(beside->scales + at + v * 16), chains[r][v]);
            if constexpr (Kind::HAS_MINIMUM)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v) {
                    const Vec16 minimums = load(beside->minimums + at + v * 16);
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; ++r)
                        chains[r][v] = fma(broadcast(x[r].sums[group]), minimums, chains[r][v]);
                }
        }
        codes += given.code_stride;
        ahead += LINES * 8 * 64;
        ++beside;
        x += block;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) store(sums + r * PANEL + v * 16, chains[r][v]);
}

#if defined(LOIRE_AMX)
// The same of 16 tokens times 16 outputs, with tiles.
template <typename Kind>
void multiply_unpacked_tile(const UnpackedParts<Kind>& given, int64_t column,
                            const typename Kind::Step* x, float* sums) {
    constexpr int GROUPS = Kind::GROUPS, ACTIVATIONS = GROUPS == 2 ? 5 : 4, CODES = ACTIVATIONS + 2;
    const char *codes = given.codes + column * LANE, *ahead = given.ahead;
    alignas(64) char numbers[Kind::PLACES * NUMBERS_BYTES];
    Vec16 chains[TILE_TOKENS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_TOKENS; ++r) chains[r] = load(sums + r * PANEL);
    for (int64_t part = 0; part < given.count; ++part) {
        const auto& beside = given.beside[part];
#pragma GCC unroll 2
        for (int group = 0; group < GROUPS; ++group) {
            for (int place = 0; place < Kind::PLACES; ++place) {
                Tiles::zero<0>();
                Tiles::load<ACTIVATIONS>(x->x + place * STEP + group * 16, sizeof(*x));
                Tiles::load<CODES>(codes + group * 4 * UNPACKED_WORD, UNPACKED_WORD);
                Tiles::multiply_bytes<0, ACTIVATIONS, CODES>();
                Tiles::store<0>(numbers + place * NUMBERS_BYTES, 64);
            }
            fetch<Kind::FETCHED_PER_PART / GROUPS, false>(ahead);
            ahead += Kind::FETCHED_PER_PART / GROUPS;
            const int64_t at = group * PANEL + column;
#pragma GCC unroll 16
            for (int r = 0; r < TILE_TOKENS; ++r) {
                Int16 number = load_ints(numbers + r * 64) + x[r].first_number(group);
                if constexpr (Kind::PLACES == 2)
                    number = to_lower_place(number) + load_ints(numbers + NUMBERS_BYTES + r * 64);
                chains[r] = fma(x[r].in_units(number), x[r].scales(beside.scales + at), chains[r]);
                if constexpr (Kind::HAS_MINIMUM)
                    chains[r] = fma(broadcast(x[r].sums[group]), load(beside.minimums + at), chains[r]);
            }
        }
        codes += given.code_stride;
        x += TILE_TOKENS;
    }
#pragma GCC unroll 16
    for (int r = 0; r < TILE_TOKENS; ++r) store(sums + r * PANEL, chains[r]);
}
#endif

// Some parts for the tokens of one block.
template <typename Kind, int MOST_ROWS, int VECTORS>
INLINE void multiply_block(const UnpackedParts<Kind>& given, const typename Kind::Step* x,
                           int64_t tokens, float* sums, FetchedPanels& added) {
#if defined(LOIRE_AMX)
    if (tokens == TILE_TOKENS) {
        for (int64_t column = 0; column < PANEL; column += 16) {
            multiply_unpacked_tile<Kind>(given, column, x, sums + column);
            added.go_on();
        }
        return;
    }
#endif
    for_rows<MOST_ROWS>(tokens, [&](auto rows, int64_t row) {
        for (int64_t column = 0; column < PANEL; column += VECTORS * 16)
            multiply_unpacked<Kind, rows.value, VECTORS>(given, column, x + row, tokens,
                                                          sums + row * PANEL + column);
        added.go_on();
    });
}

// All steps of one panel for some tokens, in blocks. added: fetched meanwhile.
template <typename Stored, int MOST_ROWS, int VECTORS>
void multiply_panel_unpacked(const char* panel, const char* activations, int64_t tokens,
                             int64_t block, int64_t steps, float* sums,
                             FetchedPanels& added) {
    using Chunk = UnpackedChunk<Stored>;
    const auto* x = reinterpret_cast<const typename Chunk::Kind::Step*>(activations);
    const int64_t parts = steps * Chunk::Packed::PARTS_OF_STEP;
    const typename Chunk::Head head(panel, 0);
    panel += Chunk::Head::BYTES;
    Chunk chunk;
    for (int64_t first = 0; first < parts; first += CHUNK_PARTS, panel += Chunk::PACKED_BYTES) {
        const int64_t count = parts - first < CHUNK_PARTS ? parts - first : CHUNK_PARTS;
        chunk.unpack(head, panel, count);
        const UnpackedParts<typename Chunk::Kind> given{
            Chunk::IN_PLACE ? panel : chunk.codes,
            Chunk::IN_PLACE ? Chunk::Packed::PART_BYTES : UNPACKED_CODES, chunk.parts, count,
            panel + Chunk::PACKED_BYTES};
        for (int64_t t = 0; t < tokens; t += block) {
            const int64_t rows = tokens - t < block ? tokens - t : block;
            multiply_block<typename Chunk::Kind, MOST_ROWS, VECTORS>(
                given, x + t * parts + rows * first, rows, sums + t * PANEL, added);
        }
    }
}

}  // namespace
}  // namespace loire
