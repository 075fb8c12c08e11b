// Attention, and the plan of a step for it.

#include <algorithm>

#include "../runtime/attention_plan.h"
#include "calls.h"
#include "context.h"

using namespace loire;

LOIRE_EXPORT AttentionPlan* loire_plan(Context* context, const PlanCall* call) {
    AttentionPlan* plan = nullptr;
    guarded([&] {
        context->pool.wake();  // a step begins
        plan = new AttentionPlan(call->query_starts, call->context_lens, call->block_tables,
                                 call->rows, call->table_size, call->block_size,
                                 context->pool.num_threads());
    });
    return plan;
}

LOIRE_EXPORT void loire_free_plan(AttentionPlan* plan) { delete plan; }

LOIRE_EXPORT int loire_attend(Context* context, const AttendCall* call) {
    return perform(context, call->plan, [context, given = *call](AttentionPlan* plan) {
        check_range("block", plan->lowest_block, given.num_blocks);
        check_range("block", plan->highest_block, given.num_blocks);
        AttentionPieces& cut = plan->pieces(given.heads, given.kv_heads, given.window);
        std::copy(cut.splits.begin(), cut.splits.end(), cut.unfinished.begin());
        const int64_t stride = (given.head_dim + 15) / 16 * 16;
        const int64_t partial_floats = cut.partial_rows * (stride + 2);
        const size_t partial_bytes = size_t(cut.partials * partial_floats) * sizeof(float);
        AttentionArguments arguments{};
        arguments.queries = given.queries;
        arguments.keys = given.keys;
        arguments.values = given.values;
        arguments.key_scales = given.key_scales;
        arguments.value_scales = given.value_scales;
        arguments.out = given.out;
        arguments.block_tables = plan->block_tables;
        arguments.table_size = plan->table_size;
        arguments.heads = given.heads;
        arguments.kv_heads = given.kv_heads;
        arguments.head_dim = given.head_dim;
        arguments.block_size = plan->block_size;
        arguments.block_stride = given.block_stride;
        arguments.scale_stride = given.scale_stride;
        arguments.window = given.window;
        arguments.scale = given.scale;
        arguments.softcap = given.softcap;
        arguments.sinks = given.sinks;
        arguments.pieces = cut.pieces.data();
        arguments.members = cut.members.data();
        arguments.merges = cut.merges.data();
        arguments.unfinished = cut.unfinished.data();
        arguments.partials = reinterpret_cast<float*>(context->partials.reserve(partial_bytes));
        arguments.partial_floats = partial_floats;
        context->pool.run(int64_t(cut.pieces.size()),
                          context->cache(given.type, given.key_scales).attention, &arguments,
                          Order::EVERY_NTH);
    });
}
