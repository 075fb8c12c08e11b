// Mixers with a state, and gates.

#include <algorithm>
#include <stdexcept>

#include "../kernels/recurrent_operations.h"
#include "calls.h"
#include "context.h"

using namespace loire;

namespace {

// The rows of a plan, their pages checked. arrays: of a state.
StateRows state_rows(const AttentionPlan* plan, const int64_t* places, int64_t arrays, void* pages,
                     int64_t num_pages, int64_t page_bytes) {
    if (plan == nullptr) throw std::invalid_argument("a state needs a plan");
    int64_t slot_pages = 0;
    for (int64_t i = 0; i < arrays; ++i) slot_pages = std::max(slot_pages, places[2 * i] + 1);
    if (slot_pages > plan->table_size)
        throw std::invalid_argument("a slot has fewer pages than its state needs");
    for (int64_t row = 0; row < plan->rows(); ++row)
        for (int64_t i = places[0]; i < slot_pages; ++i)
            check_range("page", plan->block_tables[row * plan->table_size + i], num_pages);
    return {plan->block_tables,
            plan->query_starts(),
            places,
            static_cast<char*>(pages),
            plan->rows(),
            plan->table_size,
            page_bytes};
}

}  // namespace

LOIRE_EXPORT int loire_delta_net(Context* context, const DeltaNetCall* call) {
    return perform(context, call->plan, [context, given = *call](AttentionPlan* plan) {
        DeltaNetArguments arguments{};
        arguments.states = state_rows(plan, given.places, 1 + given.value_heads, given.pages,
                                      given.num_pages, given.page_bytes);
        arguments.qkv_gate = given.qkv_gate;
        arguments.beta_alpha = given.beta_alpha;
        arguments.filters = given.filters;
        arguments.rate = given.rate;
        arguments.decay_bias = given.decay_bias;
        arguments.norm = given.norm;
        arguments.mixed = given.mixed;
        arguments.gates = given.gates;
        arguments.out = given.out;
        arguments.tokens = given.tokens;
        arguments.width = given.width;
        arguments.key_heads = given.key_heads;
        arguments.value_heads = given.value_heads;
        arguments.key_dim = given.key_dim;
        arguments.value_dim = given.value_dim;
        arguments.heads_in_turn = given.heads_in_turn != 0;
        arguments.eps = given.eps;
        const RecurrentOperations& operations = context->typed(given.type).recurrent;
        context->pool.run(row_pieces(given.tokens), operations.delta_inputs, &arguments);
        context->pool.run(arguments.states.rows * given.value_heads, operations.delta_rule, &arguments,
                          Order::EVERY_NTH);
    });
}

LOIRE_EXPORT int loire_mamba2(Context* context, const Mamba2Call* call) {
    return perform(context, call->plan, [context, given = *call](AttentionPlan* plan) {
        Mamba2Arguments arguments{};
        arguments.states = state_rows(plan, given.places, 1 + given.heads, given.pages, given.num_pages,
                                      given.page_bytes);
        arguments.projected = given.projected;
        arguments.filters = given.filters;
        arguments.filter_bias = given.filter_bias;
        arguments.rate = given.rate;
        arguments.step_bias = given.step_bias;
        arguments.skip = given.skip;
        arguments.norm = given.norm;
        arguments.mixed = given.mixed;
        arguments.steps = given.steps;
        arguments.scanned = given.scanned;
        arguments.out = given.out;
        arguments.tokens = given.tokens;
        arguments.width = given.width;
        arguments.heads = given.heads;
        arguments.groups = given.groups;
        arguments.head_dim = given.head_dim;
        arguments.state_dim = given.state_dim;
        arguments.least_step = given.least_step;
        arguments.most_step = given.most_step;
        arguments.eps = given.eps;
        const RecurrentOperations& operations = context->typed(given.type).recurrent;
        context->pool.run(row_pieces(given.tokens), operations.mamba2_inputs, &arguments);
        context->pool.run(arguments.states.rows * given.heads, operations.mamba2_scan, &arguments,
                          Order::EVERY_NTH);
        context->pool.run(row_pieces(given.tokens), operations.mamba2_outputs, &arguments);
    });
}

LOIRE_EXPORT int loire_short_convolution(Context* context, const ShortConvolutionCall* call) {
    return perform(context, call->plan, [context, given = *call](AttentionPlan* plan) {
        const ShortConvolutionArguments arguments{
            state_rows(plan, given.places, 1, given.pages, given.num_pages, given.page_bytes),
            given.gated,
            given.filters,
            given.bias,
            given.out,
            given.tokens,
            given.width,
            given.size};
        const RecurrentOperations& operations = context->typed(given.type).recurrent;
        context->pool.run(row_pieces(given.tokens), operations.convolution, &arguments);
        context->pool.run(arguments.states.rows, operations.kept_inputs, &arguments);
    });
}

LOIRE_EXPORT int loire_gate(Context* context, const GateCall* call) {
    return perform(context, nullptr, [context, given = *call](AttentionPlan*) {
        const GateArguments arguments{given.x,      given.gate, given.out,
                                      given.tokens, given.size, given.gate_size};
        context->pool.run(row_pieces(given.tokens), context->typed(given.type).recurrent.gate, &arguments);
    });
}
