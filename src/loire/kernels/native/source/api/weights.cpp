// Weights, and products with them.

#include <stdexcept>
#include <string>
#include <vector>

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
        if (format != 0 && format != 8 && format != 4 && format != 41)
            throw std::invalid_argument("weights have no format " + std::to_string(format));
        check_range("number of parts", given.num_parts, MOST_PARTS + 1);
        std::vector<WeightPart> parts;
        int64_t outputs = 0;
        for (int32_t i = 0; i < given.num_parts; ++i) {
            parts.push_back({given.parts[i], given.part_outputs[i], given.row_strides[i]});
            outputs += given.part_outputs[i];
        }
        check_range("gate", given.gate + 1, int64_t(Gate::GELU) + 2);
        const auto gate = Gate(given.gate);
        if (gate != Gate::NONE && outputs % 2 != 0)
            throw std::invalid_argument(std::to_string(outputs) + " rows have no two halves");
        const bool is_bfloat16 = given.type == 1;
        const auto kind = WeightFormat(format);
        packed = new PackedWeight(context->pool, context->weights,
                                  context->linear(is_bfloat16, kind), parts, given.bias,
                                  is_bfloat16, kind, gate, outputs / panels_per_output(gate),
                                  given.in_features);
    });
    return packed;
}

LOIRE_EXPORT void loire_free_weight(PackedWeight* weight) { delete weight; }

LOIRE_EXPORT int loire_linear(Context* context, const LinearCall* call) {
    return perform(context, nullptr, [context, given = *call](AttentionPlan*) {
        const PackedWeight& weight = *given.weight;
        if (given.wide != 0 && weight.gate != Gate::NONE)
            throw std::invalid_argument("gated results are not wide");
        multiply(context->linear(weight.is_bfloat16, weight.format), context->pool,
                 context->activations, context->forecast, weight, given.x, given.out,
                 given.wide != 0, given.tokens, given.adapters, &context->hidden);
    });
}

LOIRE_EXPORT int loire_adapt(Context* context, const AdaptCall* call) {
    return locked(context, [&] {
        std::vector<LowRankPart> parts;
        for (int32_t i = 0; i < call->num_parts; ++i)
            parts.push_back({call->downs[i], call->ups[i], call->ranks[i], call->firsts[i],
                             call->outputs[i]});
        call->weight->adapters.set(call->number, parts);
    });
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
