#include "experts.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "grouped.h"
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
    int32_t* experts;       // [T, added]: those, in that order

    Routes(Scratch& scratch, const RouteArguments& a, bool beside) : added(a.top_k + beside) {
        const size_t count = size_t(a.tokens * a.top_k), sums = size_t(a.tokens * added);
        char* memory = scratch.reserve(count * 16 + sums * 16);
        tokens = reinterpret_cast<int64_t*>(memory);
        rows = tokens + count;
        weights = reinterpret_cast<float*>(rows + sums);
        sorted_weights = weights + count;
        chosen = reinterpret_cast<int32_t*>(sorted_weights + sums);
        experts = chosen + count;
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
        if (end > first && experts[e].gate_up != nullptr)
            groups.push_back({experts + e, first, end - first, nullptr});
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
            routes.experts[t * routes.added + place] = chosen[j];
            routes.sorted_weights[t * routes.added + place] = weights[j];
        }
    }
    return groups;
}

// What each chunk of experts makes of the tokens.
struct ChunkSums {
    const char* made;  // [rows, size]
    const Routes* routes;
    const ExpertChunks* chunks;
    float* parts;  // [chunks][T, size]
    int64_t tokens, top_k, size;
    bool is_bfloat16;
};

float number(const void* values, int64_t index, bool is_bfloat16) {
    if (!is_bfloat16) return static_cast<const float*>(values)[index];
    const uint32_t bits = uint32_t(static_cast<const bfloat16*>(values)[index].bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

// One token.
void chunk_sums_piece(const void* untyped, int64_t token, Scratch&) {
    const auto& a = *static_cast<const ChunkSums*>(untyped);
    const int64_t first = token * a.routes->added, row_bytes = a.size * (a.is_bfloat16 ? 2 : 4);
    int64_t place = 0;
    for (int64_t chunk = 0; chunk < a.chunks->count; ++chunk) {
        float* sum = a.parts + (chunk * a.tokens + token) * a.size;
        std::memset(sum, 0, size_t(a.size) * sizeof(float));
        const auto expert = [&] { return int64_t(a.routes->experts[first + place]); };
        while (place < a.top_k && expert() < a.chunks->borders[chunk]) ++place;
        for (; place < a.top_k && expert() < a.chunks->borders[chunk + 1]; ++place) {
            const char* row = a.made + a.routes->rows[first + place] * row_bytes;
            const float weight = a.routes->sorted_weights[first + place];
            for (int64_t i = 0; i < a.size; ++i) sum[i] += number(row, i, a.is_bfloat16) * weight;
        }
    }
}

const Expert& first_held(const RouteArguments& routing, const Expert* experts) {
    return *std::find_if(experts, experts + routing.experts,
                         [](const Expert& expert) { return expert.gate_up != nullptr; });
}

// Which adapter each row has.
std::vector<int32_t> of_rows(const int32_t* numbers, const int64_t* tokens, int64_t rows) {
    std::vector<int32_t> found;
    for (int64_t row = 0; numbers != nullptr && row < rows; ++row)
        found.push_back(numbers[tokens[row]]);
    return found;
}

}  // namespace

void compute_experts(const Operations& operations, Pool& pool, Scratch& activations,
                     ExpertsScratch& scratch, Forecast& forecast, const void* key,
                     RouteArguments routing, const Expert* experts, const void* x,
                     const void* beside, void* out, const ExpertChunks& chunks,
                     const int32_t* numbers) {
    if (routing.tokens == 0) return;
    const PackedWeight& first = *first_held(routing, experts).gate_up;
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
    const int64_t rows = routing.tokens * routing.top_k, row_bytes = size * element_bytes;
    const std::vector<int32_t> adapters = of_rows(numbers, routes.tokens, rows);
    const int32_t* of_row = numbers == nullptr ? nullptr : adapters.data();
    const auto numbers_of = [&](const Group& group) {
        return of_row == nullptr ? nullptr : of_row + group.first;
    };
    std::vector<GroupedProduct> products;
    for (const Group& group : groups)
        products.push_back({group.expert->gate_up, group.expert->gate_up_operations,
                            static_cast<const char*>(x), size * element_bytes,
                            routes.tokens + group.first, group.count, group.hidden,
                            group.expert->gate_up->out_features, numbers_of(group)});
    multiply_together(pool, activations, scratch.low_rank, products);
    char* made = scratch.made.reserve(size_t((rows + routing.tokens) * row_bytes));
    if (beside != nullptr)
        std::memcpy(made + rows * row_bytes, beside, size_t(routing.tokens * row_bytes));
    if (waits_for_weights(routing.tokens)) pool.expect(forecast.next());
    products.clear();
    for (const Group& group : groups)
        products.push_back({group.expert->down, group.expert->down_operations, group.hidden,
                            group.expert->down->in_features * element_bytes, nullptr, group.count,
                            made + group.first * row_bytes, size, numbers_of(group)});
    multiply_together(pool, activations, scratch.low_rank, products);
    if (chunks.count != 0) {
        const int64_t part = routing.tokens * size;
        auto* parts = reinterpret_cast<float*>(
            scratch.parts.reserve(size_t(chunks.count * part) * sizeof(float)));
        const ChunkSums sums{made,           &routes,       &chunks, parts,
                             routing.tokens, routing.top_k, size,    first.is_bfloat16};
        pool.run(routing.tokens, chunk_sums_piece, &sums);
        return add_up_parts(pool, chunks.ranks,
                            {parts, chunks.count, nullptr, beside, out, !first.is_bfloat16,
                             first.is_bfloat16, routing.tokens, size});
    }
    const SumExpertsArguments sums{made, routes.rows, routes.sorted_weights, out,
                                   routing.tokens, routes.added, size};
    pool.run(row_pieces, typed.sum_experts, &sums);
}

}  // namespace loire
