// The bfloat16 linear with AMX's tiles. The order of additions is that of TDPBF16PS: inputs are taken
// in steps of 32; within a step two chains of fused multiply-adds, one over the even and one over the
// odd inputs, each starting at zero; then
//     sum = sum + (even + odd).
// So a row has the same bits whatever the others are, but not those of the other instruction sets.
//
// The packed weight: panels of 32 outputs; in a panel, steps of 32 inputs; in a step, 16 words, word
// i with a lane per output that holds inputs (2 i, 2 i + 1), the earlier one in its lower half. So a
// step is two tiles side by side, of rows that lie 128 bytes apart.
// The packed activations: blocks of up to 32 tokens, all of the same size (the last one is padded
// with zeros: a tile configuration fits all of them); in a block, steps; in a step, token by token
// the 32 inputs in their order. So a step of a block is two tiles, one below the other.
//
// The sums of a block, 2 x 2 tiles, stay in registers for a chunk of steps. Between chunks they lie
// in memory, which rounds nothing. A chunk of the activations stays in the L1 cache (48 KiB where
// there is AMX) while the panels of the piece pass by, one of a panel while the blocks do.

#pragma once

#include "linear.h"
#include "operations.h"
#include "tiles.h"
#include "vec16.h"

namespace loire {
namespace {

constexpr int64_t TILE_ROWS = 16, MOST_TILE_TOKENS = 2 * TILE_ROWS;
constexpr int64_t STEP_BYTES = 2048;      // of a panel
constexpr int64_t TOKEN_STEP_BYTES = 64;  // of a token
constexpr int64_t SUM_STRIDE = PANEL * int64_t(sizeof(float));
constexpr int64_t CHUNK_STEPS = 8;            // where several blocks share weights
constexpr int64_t CHUNK_BYTES = 16 << 10;     // of activations, where there is one block
static_assert(MOST_TILE_TOKENS * TOKEN_STEP_BYTES * CHUNK_STEPS == CHUNK_BYTES);

// As few blocks as can be, of even size: tiles of few rows take as long to load as full ones.
int64_t tile_tokens(int64_t tokens) {
    const int64_t blocks = (tokens + MOST_TILE_TOKENS - 1) / MOST_TILE_TOKENS;
    return (tokens + blocks - 1) / blocks;
}

// Fetches the part-th quarter of a step into the L2 cache.
INLINE void fetch_quarter(const char* step, int part) {
#pragma GCC unroll 8
    for (int line = 0; line < 8; ++line)
        __builtin_prefetch(step + part * (STEP_BYTES / 4) + line * 64, 0, 2);
}

// Which of the steps that follow `ahead` a pass over a chunk fetches: first, first + every, ...
struct TilePrefetch {
    const char* ahead;
    int64_t first, every;
};

// Adds some steps of one block of tokens times one panel to sums [tokens][PANEL].
template <bool HAS_LOWER>
void multiply_tiles(const char* weight, const char* activations, int64_t tokens, int64_t upper,
                    int64_t steps, TilePrefetch prefetch, float* sums) {
    float* lower_sums = sums + upper * PANEL;
    Tiles::load<0>(sums, SUM_STRIDE);
    Tiles::load<1>(sums + 16, SUM_STRIDE);
    if constexpr (HAS_LOWER) {
        Tiles::load<2>(lower_sums, SUM_STRIDE);
        Tiles::load<3>(lower_sums + 16, SUM_STRIDE);
    }
    for (int64_t step = 0; step < steps; ++step) {
        const bool fetches = prefetch.first-- == 0;
        if (fetches) prefetch.first = prefetch.every - 1;
        if (fetches) fetch_quarter(prefetch.ahead, 0);
        Tiles::load<4>(activations, TOKEN_STEP_BYTES);
        Tiles::load<6>(weight, 128);
        Tiles::multiply<0, 4, 6>();
        if (fetches) fetch_quarter(prefetch.ahead, 1);
        Tiles::load<7>(weight + 64, 128);
        Tiles::multiply<1, 4, 7>();
        if (fetches) fetch_quarter(prefetch.ahead, 2);
        if constexpr (HAS_LOWER) {
            Tiles::load<5>(activations + upper * TOKEN_STEP_BYTES, TOKEN_STEP_BYTES);
            Tiles::multiply<2, 5, 6>();
        }
        if (fetches) fetch_quarter(prefetch.ahead, 3);
        if constexpr (HAS_LOWER) Tiles::multiply<3, 5, 7>();
        weight += STEP_BYTES;
        activations += tokens * TOKEN_STEP_BYTES;
        prefetch.ahead += STEP_BYTES;
    }
    Tiles::store<0>(sums, SUM_STRIDE);
    Tiles::store<1>(sums + 16, SUM_STRIDE);
    if constexpr (HAS_LOWER) {
        Tiles::store<2>(lower_sums, SUM_STRIDE);
        Tiles::store<3>(lower_sums + 16, SUM_STRIDE);
    }
}

void linear_tiles_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& a = *static_cast<const LinearArguments*>(untyped);
    const auto [first_token, tokens, first_panel, last_panel] = linear_piece_at(a, piece);
    const int64_t block = a.tokens_per_block, blocks = (tokens + block - 1) / block;
    const int64_t upper = block <= TILE_ROWS ? block : (block + 1) / 2;
    const int64_t panel_bytes = a.steps * STEP_BYTES;
    const int64_t block_bytes = block * a.steps * TOKEN_STEP_BYTES;
    const auto* weight = static_cast<const char*>(a.weight);
    const auto* activations =
        static_cast<const char*>(a.activations) + first_token / block * block_bytes;

    const int64_t panel_sums = blocks * block * PANEL;
    const int64_t sum_bytes = (last_panel - first_panel) * panel_sums * int64_t(sizeof(float));
    float* sums = reinterpret_cast<float*>(scratch.reserve(sum_bytes));
    __builtin_memset(sums, 0, sum_bytes);

    const int64_t chunk = blocks > 1 ? CHUNK_STEPS : CHUNK_BYTES / (block * TOKEN_STEP_BYTES);
    FetchedPanels added(a.adapted, first_panel, last_panel - first_panel, sizeof(bfloat16),
                        (a.steps + chunk - 1) / chunk * (last_panel - first_panel));
    Tiles::configure(upper, block - upper);
    for (int64_t step = 0; step < a.steps; step += chunk) {
        const int64_t count = a.steps - step < chunk ? a.steps - step : chunk;
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
            const char* here = weight + panel * panel_bytes + step * STEP_BYTES;
            // What is read next; past the last step that is the next piece, if it is anything.
            const char* next = panel + 1 < last_panel ? here + panel_bytes
                               : step + chunk < a.steps
                                   ? weight + first_panel * panel_bytes + (step + chunk) * STEP_BYTES
                                   : weight + last_panel * panel_bytes;
            if (count == a.steps && blocks == 1) next = here + PREFETCH_BYTES;  // it is one stream
            for (int64_t b = 0; b < blocks; ++b)
                (block > upper ? multiply_tiles<true> : multiply_tiles<false>)(
                    here, activations + b * block_bytes + step * block * TOKEN_STEP_BYTES, block,
                    upper, count, {next, b, blocks},
                    sums + (panel - first_panel) * panel_sums + b * block * PANEL);
            added.go_on();
        }
    }
    Tiles::release();
    for (int64_t panel = first_panel; panel < last_panel; panel += panels_per_output(a.gate))
        finish_panel<bfloat16>(a, panel, first_token, tokens,
                               sums + (panel - first_panel) * panel_sums, panel_sums);
}

// One block of tokens, padded with zeros to whole steps and to a whole block.
void pack_tiles_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const PackActivationsArguments*>(untyped);
    const int64_t block = a.tokens_per_block;
    auto* packed = static_cast<bfloat16*>(a.packed) + piece * block * a.steps * STEP;
    for (int64_t r = 0; r < block; ++r) {
        const int64_t token = piece * block + r;
        const int64_t inputs = token < a.tokens ? a.in_features : 0;
        const auto* x = static_cast<const bfloat16*>(a.x) + token * a.in_features;
        for (int64_t step = 0; step < a.steps; ++step) {
            bfloat16* target = packed + (step * block + r) * STEP;
            const int64_t left = inputs - step * STEP;
            if (left >= STEP) {
                __builtin_memcpy(target, x + step * STEP, TOKEN_STEP_BYTES);
                continue;
            }
            __builtin_memset(target, 0, TOKEN_STEP_BYTES);
            if (left > 0) __builtin_memcpy(target, x + step * STEP, left * sizeof(bfloat16));
        }
    }
}

// As multiply_bfloat16_piece: LIMIT_ROUNDS times the four products of a full step, no memory.
constexpr int64_t TILE_LIMIT_FLOPS = 4 * 2 * TILE_ROWS * 16 * STEP;

void multiply_tiles_limit_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const LimitArguments*>(untyped);
    Tiles::configure(TILE_ROWS, TILE_ROWS);
    for (int64_t round = 0; round < LIMIT_ROUNDS; ++round) {
        Tiles::multiply<0, 4, 6>();
        Tiles::multiply<1, 4, 7>();
        Tiles::multiply<2, 5, 6>();
        Tiles::multiply<3, 5, 7>();
    }
    alignas(64) float result[TILE_ROWS * 16];
    Tiles::store<0>(result, 64);
    Tiles::release();
    a.results[piece] = result[0];
}

}  // namespace
}  // namespace loire
