// Operations that go row by row: embedding and norms, sums and gates, rotation.

#include <stdexcept>

#include "../runtime/packed_weight.h"
#include "calls.h"
#include "context.h"

using namespace loire;

LOIRE_EXPORT int loire_norm(Context* context, const NormCall* call) {
    return perform(context, nullptr, [context, given = *call](AttentionPlan*) {
        const NormArguments arguments{given.x,      given.residual, given.weight, given.out,
                                      given.tokens, given.size,     given.eps,    given.scale};
        context->pool.run(row_pieces(given.tokens), context->typed(given.type).norm, &arguments);
    });
}

LOIRE_EXPORT int loire_embed(Context* context, const EmbedCall* call) {
    return perform(context, nullptr, [context, given = *call](AttentionPlan*) {
        for (int64_t t = 0; t < given.tokens; ++t)
            check_range("token id", given.token_ids[t], given.vocab_size);
        PieceFunction embed = context->typed(given.type).embed;
        const void* table = given.table;
        if (table == nullptr) {
            const PackedWeight& packed = *given.packed;
            embed = context->linear(given.type == 1, packed.format)->embed;
            if (embed == nullptr || packed.is_bfloat16 != (given.type == 1))
                throw std::invalid_argument("rows of this weight cannot be looked up");
            table = packed.data;
        }
        const EmbedArguments arguments{given.token_ids, table,       given.weight,
                                       given.residual,  given.out,   given.tokens,
                                       given.size,      given.table_scale, given.eps};
        context->pool.run(row_pieces(given.tokens), embed, &arguments);
    });
}

LOIRE_EXPORT int loire_combine(Context* context, const CombineCall* call) {
    return perform(context, nullptr, [context, given = *call](AttentionPlan*) {
        const CombineArguments arguments{given.x,        given.y,
                                         given.out,      given.tokens,
                                         given.size,     given.y_stride,
                                         given.wide != 0, Gate(given.gate)};
        context->pool.run(row_pieces(given.tokens), context->typed(given.type).combine, &arguments);
    });
}

LOIRE_EXPORT int loire_rotary(Context* context, const RotaryCall* call) {
    return perform(context, nullptr, [context, given = *call](AttentionPlan*) {
        for (int64_t t = 0; t < given.tokens; ++t) {
            check_range("position", given.positions[t], given.num_positions);
            check_range("slot", given.slots[t], given.num_blocks * given.block_size);
        }
        RotaryArguments arguments{};
        arguments.qkv = given.qkv;
        arguments.queries = given.queries;
        arguments.keys = given.keys;
        arguments.values = given.values;
        arguments.key_scales = given.key_scales;
        arguments.value_scales = given.value_scales;
        arguments.query_weight = given.query_weight;
        arguments.key_weight = given.key_weight;
        arguments.cos = given.cos;
        arguments.sin = given.sin;
        arguments.positions = given.positions;
        arguments.slots = given.slots;
        arguments.tokens = given.tokens;
        arguments.heads = given.heads;
        arguments.kv_heads = given.kv_heads;
        arguments.head_dim = given.head_dim;
        arguments.half = given.half;
        arguments.block_size = given.block_size;
        arguments.block_stride = given.block_stride;
        arguments.scale_stride = given.scale_stride;
        arguments.values_are_keys = given.values_are_keys != 0;
        arguments.norm_values = given.norm_values != 0;
        arguments.eps = given.eps;
        const CacheOperations& cache = context->cache(given.type, given.key_scales);
        context->pool.run(row_pieces(given.tokens), cache.rotary, &arguments);
    });
}

LOIRE_EXPORT int loire_latents(Context* context, const LatentsCall* call) {
    return perform(context, nullptr, [context, given = *call](AttentionPlan*) {
        for (int64_t t = 0; t < given.tokens; ++t) {
            check_range("position", given.positions[t], given.num_positions);
            check_range("slot", given.slots[t], given.num_blocks * given.block_size);
        }
        const LatentsArguments arguments{
            given.latents,   given.turned,  given.queries,    given.kept,
            given.scales,    given.weight,  given.cos,        given.sin,
            given.positions, given.slots,   given.tokens,     given.heads,
            given.rope_dim,  given.rank,    given.turned_stride, given.block_size,
            given.block_stride, given.scale_stride, given.eps};
        const CacheOperations& cache = context->cache(given.type, given.scales);
        context->pool.run(row_pieces(given.tokens), cache.latents, &arguments);
    });
}
