// Tiles as source/kernels/tiles.h has them, in plain C++ after Intel's description of the instructions. Where
// the processor would fault, so does this. A test may ask for the faults of a broken processor.

#pragma once

#include <cstdint>
#include <cstring>

extern "C" {
// 0 none, 1 sums in another order, 2 a crash, 3 no end, 4 wrong whole numbers.
// (One for all parts of the library, each of which includes this.)
inline __attribute__((visibility("default"), used)) int loire_emulated_fault = 0;
}

namespace loire {
namespace {

struct TileRegister {
    int64_t rows, row_bytes;
    char data[16][64];

    float number(int64_t row, int64_t n) const {
        float value;
        std::memcpy(&value, data[row] + 4 * n, 4);
        return flushed(value);
    }

    // The 32 bfloat16 of a row.
    void widen(int64_t row, float (&values)[32]) const {
        for (int i = 0; i < 32; ++i) {
            uint16_t half;
            std::memcpy(&half, data[row] + 2 * i, 2);
            const uint32_t bits = uint32_t(half) << 16;
            std::memcpy(&values[i], &bits, 4);
            values[i] = flushed(values[i]);
        }
    }

    static float flushed(float value) {
        return __builtin_fabsf(value) < 1.17549435e-38f ? __builtin_copysignf(0.0f, value) : value;
    }
};

thread_local TileRegister registers[8];

struct Tiles {
    static void require(bool condition) {
        if (!condition) __builtin_trap();
    }

    static void configure(int64_t upper, int64_t lower) {
        require(upper >= 1 && upper <= 16 && lower >= 0 && lower <= 16);
        const int64_t rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
        configure(rows, 64, 64);
    }

    static void configure_bytes() {
        const int64_t rows[8] = {16, 0, 0, 0, 16, 16, 8, 4};
        configure(rows, 32, 16);
    }

    static void configure(const int64_t (&rows)[8], int64_t fourth_bytes, int64_t fifth_bytes) {
        while (*const_cast<volatile int*>(&loire_emulated_fault) == 3) {
        }
        require(loire_emulated_fault != 2);
        std::memset(registers, 0, sizeof(registers));
        for (int tile = 0; tile < 8; ++tile) {
            const int64_t bytes = tile == 4 ? fourth_bytes : tile == 5 ? fifth_bytes : 64;
            registers[tile].rows = rows[tile];
            registers[tile].row_bytes = rows[tile] == 0 ? 0 : bytes;
        }
    }

    template <int TILE>
    static void zero() {
        require(registers[TILE].rows > 0);
        std::memset(registers[TILE].data, 0, sizeof(registers[TILE].data));
    }

    static void release() { std::memset(registers, 0, sizeof(registers)); }

    template <int TILE>
    static void load(const void* source, int64_t stride) {
        TileRegister& tile = registers[TILE];
        require(tile.rows > 0);
        for (int64_t row = 0; row < tile.rows; ++row)
            std::memcpy(tile.data[row], static_cast<const char*>(source) + row * stride,
                        size_t(tile.row_bytes));
    }

    template <int TILE>
    static void store(void* target, int64_t stride) {
        const TileRegister& tile = registers[TILE];
        require(tile.rows > 0);
        for (int64_t row = 0; row < tile.rows; ++row)
            std::memcpy(static_cast<char*>(target) + row * stride, tile.data[row],
                        size_t(tile.row_bytes));
    }

    template <int SUMS, int ACTIVATIONS, int WEIGHTS>
    static void multiply() {
        static_assert(SUMS != ACTIVATIONS && SUMS != WEIGHTS && ACTIVATIONS != WEIGHTS);
        TileRegister &c = registers[SUMS], &a = registers[ACTIVATIONS], &b = registers[WEIGHTS];
        require(c.rows > 0 && c.rows == a.rows && c.row_bytes == b.row_bytes &&
                a.row_bytes / 4 == b.rows);
        float weights[16][32], activations[32];
        for (int64_t pair = 0; pair < b.rows; ++pair) b.widen(pair, weights[pair]);
        for (int64_t m = 0; m < c.rows; ++m) {
            a.widen(m, activations);
            for (int64_t n = 0; n < c.row_bytes / 4; ++n) {
                float chains[2] = {0.0f, 0.0f};
                for (int64_t pair = 0; pair < b.rows; ++pair)
                    for (int odd = 0; odd < 2; ++odd) {
                        float& chain = chains[loire_emulated_fault == 1 ? 0 : odd];
                        chain = TileRegister::flushed(__builtin_fmaf(
                            activations[2 * pair + odd], weights[pair][2 * n + odd], chain));
                    }
                const float product = TileRegister::flushed(chains[0] + chains[1]);
                const float sum = TileRegister::flushed(c.number(m, n) + product);
                std::memcpy(c.data[m] + 4 * n, &sum, 4);
            }
        }
    }

    template <int SUMS, int ACTIVATIONS, int WEIGHTS>
    static void multiply_bytes() {
        static_assert(SUMS != ACTIVATIONS && SUMS != WEIGHTS && ACTIVATIONS != WEIGHTS);
        TileRegister &c = registers[SUMS], &a = registers[ACTIVATIONS], &b = registers[WEIGHTS];
        require(c.rows > 0 && c.rows == a.rows && c.row_bytes == b.row_bytes &&
                a.row_bytes / 4 == b.rows);
        for (int64_t m = 0; m < c.rows; ++m)
            for (int64_t n = 0; n < c.row_bytes / 4; ++n) {
                int32_t sum;
                std::memcpy(&sum, c.data[m] + 4 * n, 4);
                for (int64_t four = 0; four < b.rows; ++four)
                    for (int64_t i = 0; i < 4; ++i)
                        sum += int32_t(int8_t(a.data[m][4 * four + i])) *
                               int32_t(uint8_t(b.data[four][4 * n + i]));
                if (loire_emulated_fault == 4) sum ^= 1;
                std::memcpy(c.data[m] + 4 * n, &sum, 4);
            }
    }
};

}  // namespace
}  // namespace loire
