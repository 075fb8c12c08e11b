#include "experts.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "multiply.h"

namespace loire {

namespace {

int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// The rows that one expert is given, and the products with them.
struct Group {
    const Expert* expert;
    int64_t first, count;  // rows
    char* hidden;          // [count, intermediate]
};

// Which rows go to whom: a row is a token in one of its experts. They are sorted by expert, then by token.
struct Routes {
    int64_t added;          // results of a token that are added up: of its experts, and what is beside
    int32_t* chosen;        // [T, top_k]
    float* weights;         // [T, top_k]
    float* sorted_weights;  // [T, added]: the same in the order of the experts, then 1
    int64_t* tokens;        // [T * top_k]: of each row
    int64_t* rows;          // [T, added]: of each token, in the order of the experts, then what is beside

    Routes(Scratch& scratch, const RouteArguments& a, bool beside) : added(a.top_k + beside) {
        const size_t count = size_t(a.tokens * a.top_k), sums = size_t(a.tokens * added);
        char* memory = scratch.reserve(count * 16 + sums * 12);
        tokens = reinterpret_cast<int64_t*>(memory);
        rows = tokens + count;
        weights = reinterpret_cast<float*>(rows + sums);
        sorted_weights = weights + count;
        chosen = reinterpret_cast<int32_t*>(sorted_weights + sums);
        for (int64_t t = 0; beside && t < a.tokens; ++t) {
            rows[t * added + a.top_k] = int64_t(count) + t;
            sorted_weights[t * added + a.top_k] = 1.0f;
        }
    }
};

std::vector<Group> sort_by_expert(const RouteArguments& a, const Expert* experts, Routes& routes) {
    const int64_t count = a.tokens * a.top_k;
    std::vector<int64_t> next(size_t(a.experts) + 1, 0);
    for (int64_t i = 0; i < count; ++i) ++next[size_t(routes.chosen[i]) + 1];
    std::vector<Group> groups;
    for (int64_t e = 0; e < a.experts; ++e) {
        const int64_t first = next[size_t(e)], end = first + next[size_t(e) + 1];
        if (end > first) groups.push_back({experts + e, first, end - first, nullptr});
        next[size_t(e) + 1] = end;
    }
    for (int64_t t = 0; t < a.tokens; ++t) {
        const int32_t* chosen = routes.chosen + t * a.top_k;
        const float* weights = routes.weights + t * a.top_k;
        for (int64_t j = 0; j < a.top_k; ++j) {
            const int64_t row = next[size_t(chosen[j])]++;
            routes.tokens[row] = t;
            int64_t place = 0;  // of this expert among the token's
            for (int64_t i = 0; i < a.top_k; ++i) place += chosen[i] < chosen[j];
            routes.rows[t * routes.added + place] = row;
            routes.sorted_weights[t * routes.added + place] = weights[j];
        }
    }
    return groups;
}

// A product of one group: a piece of the whole is a piece of one of these.
struct GroupProduct {
    const LinearOperations* operations;
    LinearArguments linear;
    const char* x;          // rows to be packed, or all tokens
    const int64_t* tokens;  // [count]: which of them; null: x is the rows
    char* packed;
    int64_t row_bytes, in_features, first_block, first_piece, packed_block_bytes;
};

struct GroupProducts {
    std::vector<GroupProduct> products;

    // The one that holds a block of activations, or a piece.
    template <int64_t GroupProduct::*FIRST>
    const GroupProduct& at(int64_t index) const {
        const auto after = std::upper_bound(
            products.begin(), products.end(), index,
            [](int64_t value, const GroupProduct& product) { return value < product.*FIRST; });
        return *(after - 1);
    }
};

// One block of a group's rows, gathered where they are not together.
void pack_group_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& all = *static_cast<const GroupProducts*>(untyped);
    const GroupProduct& product = all.at<&GroupProduct::first_block>(piece);
    const int64_t block = piece - product.first_block, size = product.linear.tokens_per_block;
    const int64_t first = block * size, count = std::min(size, product.linear.tokens - first);
    const char* x = product.x + first * product.row_bytes;
    if (product.tokens != nullptr) {
        char* gathered = scratch.reserve(size_t(count * product.row_bytes));
        for (int64_t r = 0; r < count; ++r)
            std::memcpy(gathered + r * product.row_bytes,
                        product.x + product.tokens[first + r] * product.row_bytes,
                        size_t(product.row_bytes));
        x = gathered;
    }
    const PackActivationsArguments packing{x,
                                           product.packed + block * product.packed_block_bytes,
                                           count,
                                           product.in_features,
                                           product.linear.steps,
                                           size};
    product.operations->pack_activations(&packing, 0, scratch);
}

void group_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& all = *static_cast<const GroupProducts*>(untyped);
    const GroupProduct& product = all.at<&GroupProduct::first_piece>(piece);
    product.operations->linear(&product.linear, piece - product.first_piece, scratch);
}

struct Operand {
    const char* x;
    const int64_t* tokens;  // [count] or null
    char* out;
};

// All groups' products with gate_up or with down; operand(group) says of what and where to.
template <typename OperandOf>
void multiply_groups(Pool& pool, Scratch& activations, const std::vector<Group>& groups,
                     const PackedWeight* Expert::*weight_of,
                     const LinearOperations* Expert::*operations_of, OperandOf operand) {
    const int64_t wanted = ceil_div(wanted_pieces(pool), int64_t(groups.size()));
    GroupProducts all;
    int64_t blocks = 0, pieces = 0, packed_bytes = 0;
    for (const Group& group : groups) {
        const PackedWeight& weight = *(group.expert->*weight_of);
        const LinearOperations& operations = *(group.expert->*operations_of);
        const Cut cut(operations, weight, group.count, wanted);
        const Operand given = operand(group);
        all.products.push_back(
            {&operations,
             cut.arguments(weight, nullptr, given.out, weight.out_features, false, group.count),
             given.x, given.tokens, nullptr, weight.in_features * (weight.is_bfloat16 ? 2 : 4),
             weight.in_features, blocks, pieces, cut.tokens_per_block * cut.token_bytes});
        blocks += cut.blocks;
        pieces += cut.pieces();
        packed_bytes += cut.packed_bytes();
    }
    char* packed = activations.reserve(size_t(packed_bytes));
    for (size_t i = 0; i < groups.size(); ++i) {
        GroupProduct& product = all.products[i];
        const int64_t end = i + 1 < groups.size() ? all.products[i + 1].first_block : blocks;
        product.packed = packed;
        product.linear.activations = packed;
        packed += (end - product.first_block) * product.packed_block_bytes;
    }
    pool.run(blocks, pack_group_piece, &all);
    pool.run(pieces, group_piece, &all);
}

}  // namespace

void compute_experts(const Operations& operations, Pool& pool, Scratch& activations,
                     ExpertsScratch& scratch, Forecast& forecast, const void* key,
                     RouteArguments routing, const Expert* experts, const void* x,
                     const void* beside, void* out) {
    if (routing.tokens == 0) return;
    const PackedWeight& first = *experts[0].gate_up;
    const TypedOperations& typed = first.is_bfloat16 ? operations.bfloat16 : operations.float32;
    const int64_t element_bytes = first.is_bfloat16 ? 2 : 4, size = first.in_features;
    const int64_t row_pieces = ceil_div(routing.tokens, ROWS_PER_PIECE);
    // Which experts come next nobody knows.
    forecast.begins({static_cast<const char*>(key), 0, 0});
    pool.expect({});
    Routes routes(scratch.routes, routing, beside != nullptr);
    routing.chosen = routes.chosen;
    routing.weights = routes.weights;
    pool.run(row_pieces, operations.route, &routing);
    std::vector<Group> groups = sort_by_expert(routing, experts, routes);

    int64_t hidden_bytes = 0;
    for (const Group& group : groups)
        hidden_bytes += group.count * group.expert->down->in_features * element_bytes;
    char* hidden = scratch.hidden.reserve(size_t(hidden_bytes));
    for (Group& group : groups) {
        group.hidden = hidden;
        hidden += group.count * group.expert->down->in_features * element_bytes;
    }
    multiply_groups(pool, activations, groups, &Expert::gate_up, &Expert::gate_up_operations,
                    [&](const Group& group) {
                        return Operand{static_cast<const char*>(x), routes.tokens + group.first,
                                       group.hidden};
                    });
    const int64_t rows = routing.tokens * routing.top_k, row_bytes = size * element_bytes;
    char* made = scratch.made.reserve(size_t((rows + routing.tokens) * row_bytes));
    if (beside != nullptr)
        std::memcpy(made + rows * row_bytes, beside, size_t(routing.tokens * row_bytes));
    if (waits_for_weights(routing.tokens)) pool.expect(forecast.next());
    multiply_groups(pool, activations, groups, &Expert::down, &Expert::down_operations,
                    [&](const Group& group) {
                        return Operand{group.hidden, nullptr,
                                       made + group.first * row_bytes};
                    });
    const SumExpertsArguments sums{made, routes.rows, routes.sorted_weights, out,
                                   routing.tokens, routes.added, size};
    pool.run(row_pieces, typed.sum_experts, &sums);
}

}  // namespace loire
