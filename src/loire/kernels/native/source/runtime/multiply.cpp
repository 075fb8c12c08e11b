#include "multiply.h"

#include <algorithm>
#include <cstring>

namespace loire {

namespace {

// Rows of a piece share weights that are in the cache; their activations should fit there too.
constexpr int64_t MOST_TOKENS = 192, PIECE_BYTES = 64 << 10, PIECES_PER_THREAD = 4;
constexpr int64_t FIRST_CACHE_BYTES = 16 << 10;  // the part of the L1 cache for activations

int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// What comes before a product: what adapters work out, and packing, in one go.
struct Preparation {
    const LinearOperations& operations;
    LowRankArguments low_rank;
    int64_t low_rank_pieces;
    const PackedWeight& weight;
    Rows rows;
    const Cut& cut;
    int64_t tokens;
    char* packed;
};

void prepare_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& all = *static_cast<const Preparation*>(untyped);
    if (piece < all.low_rank_pieces) return all.operations.low_rank(&all.low_rank, piece, scratch);
    const int64_t size = all.cut.tokens_per_block;
    const int64_t first = (piece - all.low_rank_pieces) * size;
    pack_rows(all.operations, all.weight, all.rows, first, std::min(size, all.tokens - first), size,
              all.packed + first * all.cut.token_bytes, scratch);
}

template <typename Element>
void copy_in_order(const char* row, const std::vector<int32_t>& order, char* target) {
    for (const int32_t input : order) {
        std::memcpy(target, row + input * int64_t(sizeof(Element)), sizeof(Element));
        target += sizeof(Element);
    }
}

}  // namespace

Cut::Cut(const LinearOperations& operations, const PackedWeight& weight, int64_t tokens,
         int64_t wanted)
    : tokens_per_block(operations.tokens_per_block(tokens)),
      blocks(ceil_div(tokens, tokens_per_block)),
      token_bytes(weight.steps * operations.packed_bytes_per_step) {
    const int64_t rows = ceil_div(blocks, MOST_TOKENS / tokens_per_block);
    tokens_per_piece = ceil_div(blocks, rows) * tokens_per_block;
    const int64_t least = tokens_per_piece * token_bytes > FIRST_CACHE_BYTES
                              ? operations.panels_per_piece
                              : 1;
    const int64_t together = panels_per_output(weight.gate);
    int64_t panels = std::max(std::max(least, PIECE_BYTES / weight.panel_bytes) / together, int64_t(1));
    while (panels > 1 && rows * (weight.panels / together / panels) < wanted) panels /= 2;
    panels_per_piece = panels * together;
    row_pieces = ceil_div(tokens, tokens_per_piece);
    column_pieces = ceil_div(weight.panels, panels_per_piece);
}

LinearArguments Cut::arguments(const PackedWeight& weight, const void* packed, void* out,
                               int64_t out_stride, bool wide, int64_t tokens) const {
    LinearArguments found{};
    found.weight = weight.data;
    found.scales = weight.scales;
    found.bias = weight.bias;
    found.activations = packed;
    found.out = out;
    found.wide = wide;
    found.gate = weight.gate;
    found.clamp = weight.clamp;
    found.tokens = tokens;
    found.steps = weight.steps;
    found.panels = weight.panels;
    found.out_features = weight.out_features;
    found.out_stride = out_stride;
    found.tokens_per_block = tokens_per_block;
    found.tokens_per_piece = tokens_per_piece;
    found.panels_per_piece = panels_per_piece;
    return found;
}

void pack_rows(const LinearOperations& operations, const PackedWeight& weight, const Rows& rows,
               int64_t first, int64_t count, int64_t tokens_per_block, char* packed,
               Scratch& scratch) {
    const int64_t row_bytes = weight.in_features * (weight.is_bfloat16 ? 2 : 4);
    const char* x = rows.x + first * rows.stride;
    if (rows.chosen != nullptr || rows.stride != row_bytes || !weight.order.empty()) {
        char* gathered = scratch.reserve(size_t(count * row_bytes));
        for (int64_t r = 0; r < count; ++r) {
            const int64_t row = rows.chosen == nullptr ? first + r : rows.chosen[first + r];
            const char* source = rows.x + row * rows.stride;
            char* target = gathered + r * row_bytes;
            if (weight.order.empty()) std::memcpy(target, source, size_t(row_bytes));
            else if (weight.is_bfloat16) copy_in_order<uint16_t>(source, weight.order, target);
            else copy_in_order<uint32_t>(source, weight.order, target);
        }
        x = gathered;
    }
    const PackActivationsArguments packing{x,     packed,       count, weight.in_features,
                                           weight.steps, tokens_per_block};
    operations.pack_activations(&packing, 0, scratch);
}

int64_t wanted_pieces(const Pool& pool) { return PIECES_PER_THREAD * pool.num_threads(); }

bool waits_for_weights(int64_t tokens) { return tokens <= MOST_TOKENS; }

void multiply(const LinearOperations& operations, Pool& pool, Scratch& activations,
              Forecast& forecast, const PackedWeight& weight, const void* x, void* out,
              int64_t out_stride, bool wide, int64_t tokens, const int32_t* numbers,
              Scratch* hidden) {
    if (tokens == 0) return;
    const AdaptedProduct adapted(weight.adapters, numbers, tokens);
    auto* below = reinterpret_cast<float*>(
        adapted.pieces() == 0 ? nullptr : hidden->reserve(adapted.hidden_bytes()));
    const Cut cut(operations, weight, tokens, wanted_pieces(pool));
    const int64_t row_bytes = weight.in_features * (weight.is_bfloat16 ? 2 : 4);
    const Preparation preparation{
        operations,
        adapted.arguments(below, static_cast<const char*>(x), row_bytes, nullptr),
        adapted.pieces(),
        weight,
        {static_cast<const char*>(x), row_bytes, nullptr},
        cut,
        tokens,
        activations.reserve(size_t(cut.packed_bytes()))};
    pool.run(adapted.pieces() + cut.blocks, prepare_piece, &preparation);
    LinearArguments arguments =
        cut.arguments(weight, preparation.packed, out, out_stride, wide, tokens);
    arguments.adapted = adapted.tokens(below);
    forecast.begins({static_cast<const char*>(weight.data), cut.column_pieces,
                     cut.panels_per_piece * weight.panel_bytes});
    pool.expect(waits_for_weights(tokens) ? forecast.next() : Stream{});
    pool.run(cut.pieces(), operations.linear, &arguments);
}

}  // namespace loire
