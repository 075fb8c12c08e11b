#include "grouped.h"

#include <algorithm>
#include <cstring>

#include "multiply.h"

namespace loire {

namespace {

int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// A product as it is computed: a piece of the whole is a piece of one of these.
struct Cutting {
    const GroupedProduct* product;
    LinearArguments linear;
    char* packed;
    int64_t row_bytes, first_block, first_piece, packed_block_bytes;
};

struct Cuttings {
    std::vector<Cutting> all;

    // The one that holds a block of activations, or a piece.
    template <int64_t Cutting::*FIRST>
    const Cutting& at(int64_t index) const {
        const auto after = std::upper_bound(
            all.begin(), all.end(), index,
            [](int64_t value, const Cutting& cutting) { return value < cutting.*FIRST; });
        return *(after - 1);
    }
};

// One block of a product's rows, gathered where they are not together.
void pack_grouped_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& all = *static_cast<const Cuttings*>(untyped);
    const Cutting& cutting = all.at<&Cutting::first_block>(piece);
    const GroupedProduct& product = *cutting.product;
    const int64_t block = piece - cutting.first_block, size = cutting.linear.tokens_per_block;
    const int64_t first = block * size, count = std::min(size, product.count - first);
    const char* x = product.x + first * product.x_stride;
    if (product.rows != nullptr || product.x_stride != cutting.row_bytes) {
        char* gathered = scratch.reserve(size_t(count * cutting.row_bytes));
        for (int64_t r = 0; r < count; ++r) {
            const int64_t row = product.rows == nullptr ? first + r : product.rows[first + r];
            std::memcpy(gathered + r * cutting.row_bytes, product.x + row * product.x_stride,
                        size_t(cutting.row_bytes));
        }
        x = gathered;
    }
    const PackActivationsArguments packing{x,
                                           cutting.packed + block * cutting.packed_block_bytes,
                                           count,
                                           product.weight->in_features,
                                           cutting.linear.steps,
                                           size};
    product.operations->pack_activations(&packing, 0, scratch);
}

void grouped_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& all = *static_cast<const Cuttings*>(untyped);
    const Cutting& cutting = all.at<&Cutting::first_piece>(piece);
    cutting.product->operations->linear(&cutting.linear, piece - cutting.first_piece, scratch);
}

}  // namespace

void multiply_together(Pool& pool, Scratch& activations,
                       const std::vector<GroupedProduct>& products) {
    if (products.empty()) return;
    const int64_t wanted = ceil_div(wanted_pieces(pool), int64_t(products.size()));
    Cuttings cuttings;
    int64_t blocks = 0, pieces = 0, packed_bytes = 0;
    for (const GroupedProduct& product : products) {
        const PackedWeight& weight = *product.weight;
        const Cut cut(*product.operations, weight, product.count, wanted);
        cuttings.all.push_back(
            {&product,
             cut.arguments(weight, nullptr, product.out, product.out_stride, product.wide, product.count),
             nullptr, weight.in_features * (weight.is_bfloat16 ? 2 : 4), blocks, pieces,
             cut.tokens_per_block * cut.token_bytes});
        blocks += cut.blocks;
        pieces += cut.pieces();
        packed_bytes += cut.packed_bytes();
    }
    char* packed = activations.reserve(size_t(packed_bytes));
    for (size_t i = 0; i < cuttings.all.size(); ++i) {
        Cutting& cutting = cuttings.all[i];
        const int64_t end = i + 1 < cuttings.all.size() ? cuttings.all[i + 1].first_block : blocks;
        cutting.packed = packed;
        cutting.linear.activations = packed;
        packed += (end - cutting.first_block) * cutting.packed_block_bytes;
    }
    pool.run(blocks, pack_grouped_piece, &cuttings);
    pool.run(pieces, grouped_piece, &cuttings);
}

}  // namespace loire
