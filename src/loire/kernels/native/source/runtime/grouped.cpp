#include "grouped.h"

#include <algorithm>

#include "multiply.h"

namespace loire {

namespace {

int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// A product as it is computed: a piece of the whole is a piece of one of these.
struct Cutting {
    const GroupedProduct* product;
    LinearArguments linear;
    char* packed;
    int64_t first_block, first_piece, packed_block_bytes;
    AdaptedProduct adapted;
    LowRankArguments low_rank;
    int64_t first_low_rank;
};

struct Cuttings {
    std::vector<Cutting> all;
    int64_t low_rank_pieces = 0;

    // The one that holds a block of activations, or a piece.
    template <int64_t Cutting::*FIRST>
    const Cutting& at(int64_t index) const {
        const auto after = std::upper_bound(
            all.begin(), all.end(), index,
            [](int64_t value, const Cutting& cutting) { return value < cutting.*FIRST; });
        return *(after - 1);
    }
};

// One block of a product's rows.
void pack_grouped_block(const Cuttings& all, int64_t index, Scratch& scratch) {
    const Cutting& cutting = all.at<&Cutting::first_block>(index);
    const GroupedProduct& product = *cutting.product;
    const int64_t block = index - cutting.first_block, size = cutting.linear.tokens_per_block;
    const int64_t first = block * size, count = std::min(size, product.count - first);
    pack_rows(*product.operations, *product.weight, {product.x, product.x_stride, product.rows},
              first, count, size, cutting.packed + block * cutting.packed_block_bytes, scratch);
}

// What adapters work out, then blocks.
void prepare_grouped_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& all = *static_cast<const Cuttings*>(untyped);
    if (piece < all.low_rank_pieces) {
        const Cutting& cutting = all.at<&Cutting::first_low_rank>(piece);
        const int64_t own = piece - cutting.first_low_rank;
        return cutting.product->operations->low_rank(&cutting.low_rank, own, scratch);
    }
    pack_grouped_block(all, piece - all.low_rank_pieces, scratch);
}

void grouped_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& all = *static_cast<const Cuttings*>(untyped);
    const Cutting& cutting = all.at<&Cutting::first_piece>(piece);
    cutting.product->operations->linear(&cutting.linear, piece - cutting.first_piece, scratch);
}

}  // namespace

void multiply_together(Pool& pool, Scratch& activations, Scratch& hidden,
                       const std::vector<GroupedProduct>& products) {
    if (products.empty()) return;
    const int64_t wanted = ceil_div(wanted_pieces(pool), int64_t(products.size()));
    Cuttings cuttings;
    cuttings.all.reserve(products.size());
    int64_t blocks = 0, pieces = 0;
    size_t packed_bytes = 0, hidden_bytes = 0;
    for (const GroupedProduct& product : products) {
        const PackedWeight& weight = *product.weight;
        const Cut cut(*product.operations, weight, product.count, wanted);
        cuttings.all.push_back(
            {&product,
             cut.arguments(weight, nullptr, product.out, product.out_stride, product.wide, product.count),
             nullptr, blocks, pieces,
             cut.tokens_per_block * cut.token_bytes,
             AdaptedProduct(weight.adapters, product.numbers, product.count), {},
             cuttings.low_rank_pieces});
        blocks += cut.blocks;
        pieces += cut.pieces();
        packed_bytes += size_t(cut.packed_bytes());
        hidden_bytes += cuttings.all.back().adapted.hidden_bytes();
        cuttings.low_rank_pieces += cuttings.all.back().adapted.pieces();
    }
    char* packed = activations.reserve(packed_bytes);
    char* below = hidden_bytes == 0 ? nullptr : hidden.reserve(hidden_bytes);
    for (size_t i = 0; i < cuttings.all.size(); ++i) {
        Cutting& cutting = cuttings.all[i];
        const int64_t end = i + 1 < cuttings.all.size() ? cuttings.all[i + 1].first_block : blocks;
        cutting.packed = packed;
        cutting.linear.activations = packed;
        packed += (end - cutting.first_block) * cutting.packed_block_bytes;
        const GroupedProduct& product = *cutting.product;
        auto* own = reinterpret_cast<float*>(below);
        cutting.low_rank = cutting.adapted.arguments(own, product.x, product.x_stride, product.rows);
        cutting.linear.adapted = cutting.low_rank.adapted;
        if (below != nullptr) below += cutting.adapted.hidden_bytes();
    }
    pool.run(cuttings.low_rank_pieces + blocks, prepare_grouped_piece, &cuttings);
    pool.run(pieces, grouped_piece, &cuttings);
}

}  // namespace loire
