// The tile operations of AMX that the linear needs: eight registers of up to 16 rows of 64 bytes.
// (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.)
//
// Written as assembly, because what is read and written has to be exact: gcc 12 takes the
// intrinsics to read less memory than they do, drops stores to the configuration (which then
// faults), and may move stores past loads of tiles.

#pragma once

#include "vec16.h"

#if defined(LOIRE_EMULATE_AMX)
#include LOIRE_EMULATE_AMX  // for tests on other machines: defines Tiles without AMX
#else
namespace loire {
namespace {

struct Tiles {
    // Tiles 0 and 1 (sums) and 4 (activations) get `upper` rows, 2, 3 and 5 `lower` rows, which may
    // be 0; 6 and 7 (weights) have 16. All are zero then.
    static void configure(int64_t upper, int64_t lower) {
        const int64_t rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
        configure(rows, 64, 64);
    }

    // Tile 0 (sums of 32 bits) gets 16 rows, 4 (activations, of 32 bytes) as many and 6 (weights) 8; for
    // half as many inputs, 5 (of 16 bytes) 16 and 7 four.
    static void configure_bytes() {
        const int64_t rows[8] = {16, 0, 0, 0, 16, 16, 8, 4};
        configure(rows, 32, 16);
    }

    // Leaves the registers as other code expects them: switching threads costs less.
    static void release() { asm volatile("tilerelease" : : : "memory"); }

    // Rows lie stride bytes apart.
    template <int TILE>
    static INLINE void load(const void* source, int64_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(source), "r"(stride), "i"(TILE)
                     : "memory");
    }

    template <int TILE>
    static INLINE void store(void* target, int64_t stride) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(target), "r"(stride), "i"(TILE)
                     : "memory");
    }

    template <int TILE>
    static INLINE void zero() {
        asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
    }

    // TDPBF16PS: sums [m][n] += over 16 pairs of inputs, activations [m][pair] * weights [pair][n].
    template <int SUMS, int ACTIVATIONS, int WEIGHTS>
    static INLINE void multiply() {
        asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2"
                     :
                     : "i"(WEIGHTS), "i"(ACTIVATIONS), "i"(SUMS));
    }

    // TDPBSUD: sums [m][n] += over fours of inputs, signed activations [m][four] * unsigned weights
    // [four][n], in 32 bits.
    template <int SUMS, int ACTIVATIONS, int WEIGHTS>
    static INLINE void multiply_bytes() {
        asm volatile("tdpbsud %%tmm%c0, %%tmm%c1, %%tmm%c2"
                     :
                     : "i"(WEIGHTS), "i"(ACTIVATIONS), "i"(SUMS));
    }

  private:
    // Bytes of a row of tiles 4 and 5; those of the others have 64.
    static void configure(const int64_t (&rows)[8], int fourth_bytes, int fifth_bytes) {
        struct alignas(64) Configuration {
            uint8_t palette, start_row, reserved[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        } configuration = {};
        static_assert(sizeof(Configuration) == 64);
        configuration.palette = 1;
        for (int tile = 0; tile < 8; ++tile) {
            const int bytes = tile == 4 ? fourth_bytes : tile == 5 ? fifth_bytes : 64;
            configuration.rows[tile] = uint8_t(rows[tile]);
            configuration.row_bytes[tile] = uint16_t(rows[tile] == 0 ? 0 : bytes);
        }
        asm volatile("ldtilecfg %0" : : "m"(configuration) : "memory");
    }
};

}  // namespace
}  // namespace loire
#endif
