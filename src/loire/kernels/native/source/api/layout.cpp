#include <cstddef>
#include <cstdint>
#include <string>

#include "calls.h"
#include "context.h"

namespace loire {
namespace {

// As Python's struct module calls them.
template <typename T>
constexpr char code_of(T*) { return 'P'; }
constexpr char code_of(int32_t) { return 'i'; }
constexpr char code_of(int64_t) { return 'q'; }
constexpr char code_of(float) { return 'f'; }

template <typename T>
std::string field(const char* name, T, size_t offset) {
    return std::string(name) + ':' + code_of(T{}) + '@' + std::to_string(offset) + ' ';
}

std::string describe() {
    std::string all;
#define BEGIN(Struct) all += #Struct "{ ";
#define FIELD(Struct, name) all += field(#name, decltype(Struct::name){}, offsetof(Struct, name));
#define END(Struct) all += "}" + std::to_string(sizeof(Struct)) + ';';
    BEGIN(PackCall)
    FIELD(PackCall, parts)
    FIELD(PackCall, part_outputs)
    FIELD(PackCall, row_strides)
    FIELD(PackCall, bias)
    FIELD(PackCall, in_features)
    FIELD(PackCall, num_parts)
    FIELD(PackCall, type)
    FIELD(PackCall, format)
    FIELD(PackCall, gate)
    FIELD(PackCall, gate_alpha)
    FIELD(PackCall, gate_limit)
    END(PackCall)
    BEGIN(LinearCall)
    FIELD(LinearCall, weight)
    FIELD(LinearCall, x)
    FIELD(LinearCall, out)
    FIELD(LinearCall, adapters)
    FIELD(LinearCall, tokens)
    FIELD(LinearCall, out_stride)
    FIELD(LinearCall, wide)
    END(LinearCall)
    BEGIN(AdaptCall)
    FIELD(AdaptCall, weight)
    FIELD(AdaptCall, downs)
    FIELD(AdaptCall, ups)
    FIELD(AdaptCall, ranks)
    FIELD(AdaptCall, firsts)
    FIELD(AdaptCall, outputs)
    FIELD(AdaptCall, number)
    FIELD(AdaptCall, num_parts)
    END(AdaptCall)
    BEGIN(ExpertsCall)
    FIELD(ExpertsCall, gate_ups)
    FIELD(ExpertsCall, downs)
    FIELD(ExpertsCall, x)
    FIELD(ExpertsCall, logits)
    FIELD(ExpertsCall, bias)
    FIELD(ExpertsCall, expert_scales)
    FIELD(ExpertsCall, out)
    FIELD(ExpertsCall, tokens)
    FIELD(ExpertsCall, experts)
    FIELD(ExpertsCall, top_k)
    FIELD(ExpertsCall, groups)
    FIELD(ExpertsCall, chosen_groups)
    FIELD(ExpertsCall, scores)
    FIELD(ExpertsCall, renormalise)
    FIELD(ExpertsCall, scale)
    END(ExpertsCall)
    BEGIN(NormCall)
    FIELD(NormCall, x)
    FIELD(NormCall, residual)
    FIELD(NormCall, weight)
    FIELD(NormCall, out)
    FIELD(NormCall, tokens)
    FIELD(NormCall, size)
    FIELD(NormCall, type)
    FIELD(NormCall, eps)
    FIELD(NormCall, scale)
    END(NormCall)
    BEGIN(CombineCall)
    FIELD(CombineCall, x)
    FIELD(CombineCall, y)
    FIELD(CombineCall, out)
    FIELD(CombineCall, tokens)
    FIELD(CombineCall, size)
    FIELD(CombineCall, y_stride)
    FIELD(CombineCall, type)
    FIELD(CombineCall, wide)
    FIELD(CombineCall, gate)
    END(CombineCall)
    BEGIN(EmbedCall)
    FIELD(EmbedCall, token_ids)
    FIELD(EmbedCall, table)
    FIELD(EmbedCall, packed)
    FIELD(EmbedCall, weight)
    FIELD(EmbedCall, residual)
    FIELD(EmbedCall, out)
    FIELD(EmbedCall, tokens)
    FIELD(EmbedCall, size)
    FIELD(EmbedCall, vocab_size)
    FIELD(EmbedCall, type)
    FIELD(EmbedCall, table_scale)
    FIELD(EmbedCall, eps)
    END(EmbedCall)
    BEGIN(DequantizeCall)
    FIELD(DequantizeCall, blocks)
    FIELD(DequantizeCall, out)
    FIELD(DequantizeCall, elements)
    FIELD(DequantizeCall, type)
    FIELD(DequantizeCall, format)
    END(DequantizeCall)
    BEGIN(ChooseCall)
    FIELD(ChooseCall, rows)
    FIELD(ChooseCall, temperature)
    FIELD(ChooseCall, min_p)
    FIELD(ChooseCall, top_k)
    FIELD(ChooseCall, top_p)
    FIELD(ChooseCall, draw)
    FIELD(ChooseCall, edit_starts)
    FIELD(ChooseCall, edit_tokens)
    FIELD(ChooseCall, edit_addends)
    FIELD(ChooseCall, places)
    FIELD(ChooseCall, counts)
    FIELD(ChooseCall, seen)
    FIELD(ChooseCall, repetition)
    FIELD(ChooseCall, frequency)
    FIELD(ChooseCall, presence)
    FIELD(ChooseCall, allowed)
    FIELD(ChooseCall, tokens)
    FIELD(ChooseCall, finite)
    FIELD(ChooseCall, count)
    FIELD(ChooseCall, size)
    FIELD(ChooseCall, num_lines)
    FIELD(ChooseCall, words)
    END(ChooseCall)
    BEGIN(RotaryCall)
    FIELD(RotaryCall, qkv)
    FIELD(RotaryCall, queries)
    FIELD(RotaryCall, keys)
    FIELD(RotaryCall, values)
    FIELD(RotaryCall, key_scales)
    FIELD(RotaryCall, value_scales)
    FIELD(RotaryCall, query_weight)
    FIELD(RotaryCall, key_weight)
    FIELD(RotaryCall, cos)
    FIELD(RotaryCall, sin)
    FIELD(RotaryCall, positions)
    FIELD(RotaryCall, slots)
    FIELD(RotaryCall, tokens)
    FIELD(RotaryCall, heads)
    FIELD(RotaryCall, kv_heads)
    FIELD(RotaryCall, head_dim)
    FIELD(RotaryCall, half)
    FIELD(RotaryCall, block_size)
    FIELD(RotaryCall, block_stride)
    FIELD(RotaryCall, scale_stride)
    FIELD(RotaryCall, num_blocks)
    FIELD(RotaryCall, num_positions)
    FIELD(RotaryCall, type)
    FIELD(RotaryCall, values_are_keys)
    FIELD(RotaryCall, norm_values)
    FIELD(RotaryCall, eps)
    END(RotaryCall)
    BEGIN(PlanCall)
    FIELD(PlanCall, query_starts)
    FIELD(PlanCall, context_lens)
    FIELD(PlanCall, block_tables)
    FIELD(PlanCall, rows)
    FIELD(PlanCall, table_size)
    FIELD(PlanCall, block_size)
    END(PlanCall)
    BEGIN(AttendCall)
    FIELD(AttendCall, plan)
    FIELD(AttendCall, queries)
    FIELD(AttendCall, keys)
    FIELD(AttendCall, values)
    FIELD(AttendCall, key_scales)
    FIELD(AttendCall, value_scales)
    FIELD(AttendCall, sinks)
    FIELD(AttendCall, out)
    FIELD(AttendCall, heads)
    FIELD(AttendCall, kv_heads)
    FIELD(AttendCall, head_dim)
    FIELD(AttendCall, block_stride)
    FIELD(AttendCall, scale_stride)
    FIELD(AttendCall, num_blocks)
    FIELD(AttendCall, window)
    FIELD(AttendCall, type)
    FIELD(AttendCall, scale)
    FIELD(AttendCall, softcap)
    END(AttendCall)
#undef END
#undef FIELD
#undef BEGIN
    return all;
}

}  // namespace
}  // namespace loire

// How the structs of calls.h lie in memory: per struct its name, {, its fields as name:type@offset, },
// its size and a semicolon.
LOIRE_EXPORT const char* loire_layout() {
    static const std::string layout = loire::describe();
    return layout.c_str();
}
