// The quantized linear with AMX's tiles, for many tokens: one TDPBSUD gives the whole numbers of 16
// tokens times 16 outputs in a step. They are exact, and what follows is that of
// linear_quantized.h in its order, so the bits are the same, and few tokens are left to it.
//
// A step of the packed weight is two tiles side by side, of 8 rows (of four inputs) that lie 128
// bytes apart. Packed activations are tiles as they lie: a token's 32 bytes are a row.

#pragma once

#include "linear.h"
#include "linear_quantized.h"
#include "operations.h"
#include "tiles.h"
#include "vec16.h"

namespace loire {
namespace {

constexpr int64_t TILE_TOKENS = 16;
constexpr int64_t BYTE_CHUNK_STEPS = 8;         // so that a chunk stays in the L1 cache
constexpr int64_t NUMBERS_BYTES = TILE_TOKENS * 16 * int64_t(sizeof(int32_t));

template <int64_t MOST_ROWS>
int64_t quantized_tile_tokens(int64_t tokens) {
    return tokens <= 2 * MOST_ROWS ? block_tokens<MOST_ROWS>(tokens) : TILE_TOKENS;
}

// Takes the chains of 16 tokens times 16 outputs, in sums [tokens][PANEL], some steps on. Rows past
// the last token compute what nobody reads. rows: tokens of the block, 16 or fewer.
template <typename Format>
void add_tile(const char* weight, int64_t column, const char* ahead,
              const typename Format::Activation* x, int64_t rows, int64_t steps, char* numbers,
              float* sums) {
    Vec16 chains[TILE_TOKENS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_TOKENS; ++r) chains[r] = load(sums + r * PANEL);
    for (int64_t step = 0; step < steps; ++step) {
        Tiles::zero<0>();
        Tiles::load<4>(x, sizeof(*x));
        Tiles::load<6>(weight + column * 4, PANEL * 4);
        Tiles::multiply_bytes<0, 4, 6>();
        Tiles::store<0>(numbers, 64);
        fetch<Format::WEIGHT_BYTES / 2, false>(ahead + column * Format::WEIGHT_BYTES / PANEL);
#pragma GCC unroll 16
        for (int r = 0; r < TILE_TOKENS; ++r)
            Format::add_number(load_ints(numbers + r * 64) + x[r].first_number(), x[r], chains[r]);
        weight += Format::WEIGHT_BYTES;
        ahead += Format::WEIGHT_BYTES;
        x += rows;
    }
#pragma GCC unroll 16
    for (int r = 0; r < TILE_TOKENS; ++r) store(sums + r * PANEL, chains[r]);
}

// All steps of one panel. sums: of whole blocks. numbers: NUMBERS_BYTES. added: fetched meanwhile.
template <typename Format>
void multiply_panel_tiles(const char* panel, const typename Format::Activation* activations,
                          int64_t tokens, int64_t steps, char* numbers, float* sums,
                          FetchedPanels& added) {
    for (int64_t step = 0; step < steps; step += BYTE_CHUNK_STEPS) {
        const int64_t count = steps - step < BYTE_CHUNK_STEPS ? steps - step : BYTE_CHUNK_STEPS;
        const char* weight = panel + step * Format::WEIGHT_BYTES;
        const char* ahead = weight + BYTE_CHUNK_STEPS * Format::WEIGHT_BYTES;
        for (int64_t t = 0; t < tokens; t += TILE_TOKENS) {
            const int64_t rows = tokens - t < TILE_TOKENS ? tokens - t : TILE_TOKENS;
            for (int64_t column = 0; column < PANEL; column += 16) {
                add_tile<Format>(weight, column, ahead, activations + t * steps + rows * step, rows,
                                 count, numbers, sums + t * PANEL + column);
                added.go_on();
            }
        }
    }
}

template <typename Format>
void quantized_tiles_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& a = *static_cast<const LinearArguments*>(untyped);
    if (a.tokens_per_block < TILE_TOKENS) return linear_piece<Format>(untyped, piece, scratch);
    const auto [first_token, tokens, first_panel, last_panel] = linear_piece_at(a, piece);
    const int64_t panel_bytes = a.steps * Format::WEIGHT_BYTES;
    const auto* activations =
        static_cast<const typename Format::Activation*>(a.activations) + first_token * a.steps;
    const int64_t together = panels_per_output(a.gate);
    const int64_t panel_sums = (tokens + TILE_TOKENS - 1) / TILE_TOKENS * TILE_TOKENS * PANEL;
    const int64_t sum_bytes = together * panel_sums * int64_t(sizeof(float));
    char* numbers = scratch.reserve(NUMBERS_BYTES + sum_bytes);
    float* sums = reinterpret_cast<float*>(numbers + NUMBERS_BYTES);
    const int64_t times = together * panel_sums / PANEL / TILE_TOKENS * (PANEL / 16) *
                          ((a.steps + BYTE_CHUNK_STEPS - 1) / BYTE_CHUNK_STEPS);
    Tiles::configure_bytes();
    for (int64_t panel = first_panel; panel < last_panel; panel += together) {
        __builtin_memset(sums, 0, sum_bytes);
        FetchedPanels added(a.adapted, panel, together, sizeof(typename Format::Element), times);
        for (int64_t i = 0; i < together; ++i)
            multiply_panel_tiles<Format>(
                static_cast<const char*>(a.weight) + (panel + i) * panel_bytes, activations, tokens,
                a.steps, numbers, sums + i * panel_sums, added);
        finish_panel<typename Format::Element>(a, panel, first_token, tokens, sums, panel_sums);
    }
    Tiles::release();
}

}  // namespace
}  // namespace loire
