// Products over several ranks, and what else crosses between them.

#include <cstring>
#include <stdexcept>
#include <vector>

#include "../runtime/summed.h"
#include "calls.h"
#include "context.h"

using namespace loire;

// Of the memory that so many ranks share.
LOIRE_EXPORT int64_t loire_shared_bytes(int64_t size) { return Ranks::shared_bytes(size); }

LOIRE_EXPORT Ranks* loire_join(Context*, const JoinCall* call) {
    Ranks* ranks = nullptr;
    guarded([&] { ranks = new Ranks(call->memory, call->bytes, call->rank, call->size); });
    return ranks;
}

LOIRE_EXPORT void loire_lose(Ranks* ranks) { ranks->lose(); }

LOIRE_EXPORT void loire_leave(Ranks* ranks) { delete ranks; }

LOIRE_EXPORT int loire_sum_products(Context* context, const SumProductsCall* call) {
    ChunkedProduct product{};
    const bool known = guarded([&] {
        check_range("number of chunks", call->chunks - 1, MOST_SUMMANDS);
        for (int64_t i = 0; i < call->chunks; ++i) {
            const PackedWeight& weight = *call->weights[i];
            const int64_t end = call->offsets[i] + weight.in_features;
            if (weight.gate != Gate::NONE || weight.bias != nullptr ||
                weight.is_bfloat16 != (call->type == 1) ||
                weight.out_features != call->out_features || call->offsets[i] < 0 ||
                end > call->in_features)
                throw std::invalid_argument("the chunks of a product do not fit each other");
            product.weights.push_back(&weight);
            product.operations.push_back(context->linear(weight.is_bfloat16, weight.format));
            product.offsets.push_back(call->offsets[i]);
        }
    });
    if (!known) return -1;
    product.x = static_cast<const char*>(call->x);
    product.x_stride = call->in_features * (call->type == 1 ? 2 : 4);
    product.numbers = call->adapters;
    const Total total{nullptr,         0,           call->bias, nullptr, call->out,
                      call->wide != 0, call->type == 1, call->tokens, call->out_features};
    return perform(context, nullptr, [context, product, total, ranks = call->ranks](AttentionPlan*) {
        multiply_chunks(context->pool, context->chunked, context->forecast, ranks, product, total);
    });
}

LOIRE_EXPORT int loire_sum_parts(Context* context, const SumPartsCall* call) {
    return perform(context, nullptr, [context, given = *call](AttentionPlan*) {
        check_range("number of parts", given.count - 1, MOST_SUMMANDS);
        add_up_parts(context->pool, given.ranks,
                     {given.parts, given.count, nullptr, nullptr, given.out, given.wide != 0,
                      given.type == 1, given.tokens, given.size});
    });
}

LOIRE_EXPORT int loire_gather(Context* context, const GatherCall* call) {
    return locked(context, [&] {
        const GatherCall& given = *call;
        Ranks& ranks = *given.ranks;
        const auto numbers = [&](int64_t rank) {
            return given.tokens * (given.borders[rank + 1] - given.borders[rank]);
        };
        int64_t most = 0;
        for (int64_t rank = 0; rank < ranks.size; ++rank)
            most = numbers(rank) > most ? numbers(rank) : most;
        const auto count = [&](int64_t rank, int64_t first) {
            return std::max(std::min(Ranks::PART, numbers(rank) - first), int64_t(0));
        };
        for (int64_t first = 0; first < most; first += Ranks::PART) {
            std::memcpy(ranks.own(), given.x + first,
                        size_t(count(ranks.rank, first)) * sizeof(float));
            ranks.meet();
            for (int64_t rank = 0; given.out != nullptr && rank < ranks.size; ++rank) {
                const int64_t width = given.borders[rank + 1] - given.borders[rank];
                const int64_t end = first + count(rank, first), line = given.borders[ranks.size];
                const float* part = ranks.part(rank);
                for (int64_t i = first; i < end;) {
                    const int64_t row = i / width, column = i % width;
                    const int64_t some = std::min(width - column, end - i);
                    std::memcpy(given.out + row * line + given.borders[rank] + column,
                                part + (i - first), size_t(some) * sizeof(float));
                    i += some;
                }
            }
        }
    });
}
