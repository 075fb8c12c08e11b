// Weights, and products with them.

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../runtime/grouped.h"
#include "../runtime/multiply.h"
#include "../runtime/packed_weight.h"
#include "calls.h"
#include "context.h"

using namespace loire;

LOIRE_EXPORT PackedWeight* loire_pack(Context* context, const PackCall* call) {
    PackedWeight* packed = nullptr;
    locked(context, [&] {
        const PackCall& given = *call;
        const int32_t format = given.format;
        const bool is_bfloat16 = given.type == 1;
        const auto kind = WeightFormat(format);
        const LinearOperations* operations = context->linear(is_bfloat16, kind);
        if (operations == nullptr)
            throw std::invalid_argument("weights have no format " + std::to_string(format));
        if (format >= int32_t(WeightFormat::FIRST_BLOCKS) &&
            given.in_features % operations->step_inputs != 0)
            throw std::invalid_argument(std::to_string(given.in_features) +
                                        " inputs do not fill blocks of " +
                                        std::to_string(operations->step_inputs));
        check_range("number of parts", given.num_parts, MOST_PARTS + 1);
        std::vector<WeightPart> parts;
        int64_t outputs = 0;
        for (int32_t i = 0; i < given.num_parts; ++i) {
            parts.push_back({given.parts[i], given.part_outputs[i], given.row_strides[i],
                             given.levels == nullptr ? nullptr : given.levels[i]});
            outputs += given.part_outputs[i];
        }
        check_range("gate", given.gate + 1, int64_t(Gate::SQUARED_RELU) + 2);
        const auto gate = Gate(given.gate);
        if (outputs % panels_per_output(gate) != 0)
            throw std::invalid_argument(std::to_string(outputs) + " rows have no two halves");
        std::vector<int32_t> order;
        if (given.order != nullptr) order.assign(given.order, given.order + given.in_features);
        for (const int32_t input : order) check_range("input", input, given.in_features);
        packed = new PackedWeight(context->pool, context->weights, *operations, parts, given.bias,
                                  is_bfloat16, kind, gate, {given.gate_alpha, given.gate_limit},
                                  outputs / panels_per_output(gate),
                                  given.in_features, std::move(order));
        context->token_bytes =
            std::max(context->token_bytes, packed->steps * operations->packed_bytes_per_step);
    });
    return packed;
}

// Makes memory for inputs of so many tokens, packed, and writes to all of it: the system gives it only
// then.
LOIRE_EXPORT int loire_reserve(Context* context, int64_t tokens) {
    struct Reserved {
        char* data;
        int64_t bytes;
    };
    static constexpr int64_t PIECE_BYTES = 2 << 20;
    return locked(context, [&] {
        const int64_t bytes = tokens * context->token_bytes;
        const Reserved reserved{context->activations.reserve(size_t(bytes)), bytes};
        const auto clear = [](const void* untyped, int64_t piece, Scratch&) {
            const auto& a = *static_cast<const Reserved*>(untyped);
            const int64_t first = piece * PIECE_BYTES;
            std::memset(a.data + first, 0, size_t(std::min(PIECE_BYTES, a.bytes - first)));
        };
        context->pool.run((bytes + PIECE_BYTES - 1) / PIECE_BYTES, clear, &reserved);
    });
}

// What a product reads of it.
LOIRE_EXPORT int64_t loire_weight_bytes(const PackedWeight* weight) {
    const int64_t scales = weight->scales == nullptr ? 0 : PANEL * int64_t(sizeof(float));
    return weight->panels * (weight->panel_bytes + scales);
}

LOIRE_EXPORT void loire_free_weight(PackedWeight* weight) { delete weight; }

LOIRE_EXPORT int loire_linear(Context* context, const LinearCall* call) {
    return perform(context, nullptr, [context, given = *call](AttentionPlan*) {
        const PackedWeight& weight = *given.weight;
        if (given.wide != 0 && weight.gate != Gate::NONE)
            throw std::invalid_argument("gated results are not wide");
        multiply(*context->linear(weight.is_bfloat16, weight.format), context->pool,
                 context->activations, context->forecast, weight, given.x, given.out,
                 given.out_stride, given.wide != 0, given.tokens, given.adapters,
                 &context->hidden);
    });
}

// On any thread, also while a step computes. Null and a message where memory is short.
LOIRE_EXPORT PackedAdapter* loire_pack_adapter(Context*, const PackAdapterCall* call) {
    PackedAdapter* packed = nullptr;
    guarded([&] {
        std::vector<LowRankPart> parts;
        for (int32_t i = 0; i < call->num_parts; ++i)
            parts.push_back({call->downs[i], call->ups[i], call->ranks[i], call->firsts[i],
                             call->outputs[i]});
        packed = call->weight->adapters.pack(parts).release();
    });
    return packed;
}

LOIRE_EXPORT int64_t loire_adapter_bytes(const PackedAdapter* adapter) { return adapter->bytes(); }

LOIRE_EXPORT void loire_free_adapter(PackedAdapter* adapter) { delete adapter; }

LOIRE_EXPORT int loire_adapt(Context* context, const AdaptCall* call) {
    return locked(context,
                  [&] { call->weight->adapters.set(call->number, call->adapter); });
}

LOIRE_EXPORT int loire_dequantize(Context* context, const DequantizeCall* call) {
    return locked(context, [&] {
        const DequantizeArguments arguments{call->blocks, call->out, call->elements,
                                            BlockFormat(call->format)};
        const int64_t pieces =
            (call->elements + DEQUANTIZED_PER_PIECE - 1) / DEQUANTIZED_PER_PIECE;
        context->pool.run(pieces, context->typed(call->type).dequantize, &arguments);
    });
}

LOIRE_EXPORT int loire_heads(Context* context, const HeadsCall* call) {
    std::vector<GroupedProduct> products;
    const bool known = guarded([&] {
        for (int64_t h = 0; h < call->heads; ++h) {
            const PackedWeight &weight = *call->weights[h], &first = *call->weights[0];
            if (weight.gate != Gate::NONE || weight.is_bfloat16 != first.is_bfloat16 ||
                weight.in_features != first.in_features ||
                weight.out_features != first.out_features)
                throw std::invalid_argument("the weights of heads do not fit each other");
            const int64_t element_bytes = weight.is_bfloat16 ? 2 : 4;
            products.push_back(
                {&weight, context->linear(weight.is_bfloat16, weight.format),
                 static_cast<const char*>(call->x) + h * call->x_head_stride * element_bytes,
                 call->x_stride * element_bytes, nullptr, call->tokens,
                 static_cast<char*>(call->out) + h * call->out_head_stride * element_bytes,
                 call->out_stride, call->adapters});
        }
    });
    if (!known) return -1;
    return perform(context, nullptr, [context, products](AttentionPlan*) {
        if (products.empty() || products[0].count == 0) return;
        context->forecast.begins({products[0].weight->data, 0, 0});
        context->pool.expect(waits_for_weights(products[0].count) ? context->forecast.next()
                                                                  : Stream{});
        multiply_together(context->pool, context->activations, context->hidden, products);
    });
}
