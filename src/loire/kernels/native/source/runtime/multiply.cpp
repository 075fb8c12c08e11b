#include "multiply.h"

#include <algorithm>

namespace loire {

namespace {

// Rows of a piece share weights that are in the cache; their activations should fit there too.
constexpr int64_t MOST_TOKENS = 192, PIECE_BYTES = 64 << 10, PIECES_PER_THREAD = 4;
constexpr int64_t FIRST_CACHE_BYTES = 16 << 10;  // the part of the L1 cache for activations

int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

}  // namespace

void multiply(const LinearOperations& operations, Pool& pool, Scratch& activations,
              Forecast& forecast, const PackedWeight& weight, const void* x, void* out,
              int64_t out_stride, bool wide, int64_t tokens, const int32_t* numbers,
              Scratch* hidden) {
    if (tokens == 0) return;
    AdaptedTokens adapted;
    if (numbers != nullptr && !weight.adapters.empty()) {
        adapted = weight.adapters.tokens(numbers);
        const int64_t floats = tokens * adapted.hidden_stride;
        adapted.hidden = reinterpret_cast<float*>(hidden->reserve(size_t(floats) * sizeof(float)));
        const LowRankArguments arguments{adapted, x, tokens, weight.in_features};
        pool.run(ceil_div(tokens, ROWS_PER_PIECE), operations.low_rank, &arguments);
    }
    const int64_t block = operations.tokens_per_block(tokens);
    const int64_t blocks = ceil_div(tokens, block);
    const int64_t token_bytes = weight.steps * operations.packed_bytes_per_step;
    const PackActivationsArguments packing{x,
                                           activations.reserve(size_t(blocks * block * token_bytes)),
                                           tokens,
                                           weight.in_features,
                                           weight.steps,
                                           block};
    pool.run(blocks, operations.pack_activations, &packing);

    const int64_t rows = ceil_div(blocks, MOST_TOKENS / block);  // of pieces
    const int64_t tokens_per_piece = ceil_div(blocks, rows) * block;
    const int64_t least = tokens_per_piece * token_bytes > FIRST_CACHE_BYTES
                              ? operations.panels_per_piece
                              : 1;
    const int64_t together = panels_per_output(weight.gate);
    int64_t panels = std::max(std::max(least, PIECE_BYTES / weight.panel_bytes) / together, int64_t(1));
    const int64_t wanted = PIECES_PER_THREAD * pool.num_threads();
    while (panels > 1 && rows * (weight.panels / together / panels) < wanted) panels /= 2;
    panels *= together;
    const LinearArguments arguments{weight.data,   weight.scales, weight.bias,         packing.packed,
                                    out,           wide,          weight.gate,         tokens,
                                    weight.steps,  weight.panels, weight.out_features, out_stride,
                                    block,         tokens_per_piece, panels, adapted};
    const int64_t pieces = ceil_div(weight.panels, panels);
    forecast.begins({static_cast<const char*>(weight.data), pieces, panels * weight.panel_bytes});
    // Many tokens take longer to multiply than weights take to come.
    pool.expect(tokens <= MOST_TOKENS ? forecast.next() : Stream{});
    pool.run(ceil_div(tokens, tokens_per_piece) * pieces, operations.linear, &arguments);
}

}  // namespace loire
