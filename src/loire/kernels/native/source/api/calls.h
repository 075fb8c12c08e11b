// What the library's functions are given, as loire/kernels/native/calls.py has it too: layout.cpp tells
// it how these lie in memory, and it checks that its own do.
//
// Letters in shapes as in loire/kernels/interface.py. Tensors are contiguous unless said otherwise.
// type: 0 for float32, 1 for bfloat16.

#pragma once

#include <cstdint>

namespace loire {

class PackedWeight;
struct PackedAdapter;
class AttentionPlan;
class Ranks;

// The weight's parts, one below the other, have rows of in_features elements, row_strides[i] apart.
// format: 0 keeps the numbers, 8 and 4 quantize them to that many bits; with 100 plus a BlockFormat the
// rows are blocks, row_strides bytes apart, and type is that of x and of the bias. gate: a Gate; with one,
// results are gate(product with the first half of the rows) * product with the second, or for one without
// a second half gate(product).
struct PackCall {
    const void* const* parts;
    const int64_t* part_outputs;
    const int64_t* row_strides;
    const int8_t* const* levels;  // of each part [outputs, LEVELS] or null; or null; rows that are packed
                                  // together, eight from each multiple of eight on, have the same
    const void* bias;  // or null
    const int32_t* order;  // [in_features], of blocks: which input of x each input of a row is; or null
    int64_t in_features;
    int32_t num_parts, type, format, gate;
    float gate_alpha, gate_limit;  // a Clamp
};

// out is float32 if wide (not with a gate), else of x's type: the one that the weight was packed from.
struct LinearCall {
    const PackedWeight* weight;
    const void* x;             // [T, in]
    void* out;                 // [T, out], rows out_stride elements apart
    const int32_t* adapters;   // [T] their numbers, -1 for none; or null
    int64_t tokens, out_stride;
    int32_t wide;
};

// Part i of an adapter adds ups[i] (downs[i] x) to outputs[i] outputs from firsts[i] on, which are counted
// before a gate; it has rank ranks[i]. All are of x's type.
struct PackAdapterCall {
    const PackedWeight* weight;
    const void* const* downs;
    const void* const* ups;
    const int64_t* ranks;
    const int64_t* firsts;
    const int64_t* outputs;
    int32_t num_parts;
};

// From now on adapter `number` adds this, which was packed for the weight; null: nothing.
struct AdaptCall {
    PackedWeight* weight;
    const PackedAdapter* adapter;
    int32_t number;
};

// out is what the experts that each token chooses make of x, weighted and added up in the experts' order,
// and then `beside`, of x's type. gate_ups and downs: of each expert, packed with a gate and without, null of
// those that other ranks have. chunks: see ExpertChunks. What chooses: see RouteArguments.
struct ExpertsCall {
    const PackedWeight* const* gate_ups;
    const PackedWeight* const* downs;
    const void* x;        // [T, E]
    const float* logits;  // [T, experts]
    const float* bias;    // [experts] or null
    const float* expert_scales;  // [experts] or null
    const void* beside;   // [T, E] or null
    const int32_t* adapters;  // as in LinearCall
    void* out;            // [T, E]
    const int64_t* borders;  // [chunks + 1], or null
    Ranks* ranks;            // or null
    int64_t tokens, experts, top_k, groups, chosen_groups, chunks;
    int32_t scores, renormalise;
    float scale;
};

// memory: what the ranks share, loire_shared_bytes(size) of it.
struct JoinCall {
    void* memory;
    int64_t bytes, rank, size;
};

// out = the sum of x's chunks times their weights, those of the other ranks included, plus bias. offsets: of
// each chunk's first input, in elements. Weights have neither bias nor gate.
struct SumProductsCall {
    const PackedWeight* const* weights;
    const int64_t* offsets;
    const void* x;            // [T, in]
    const float* bias;        // [out] or null
    const int32_t* adapters;  // [T] their numbers, -1 for none; or null
    Ranks* ranks;             // or null: there is but this one
    void* out;                // [T, out], float32 if wide
    int64_t tokens, in_features, out_features, chunks;
    int32_t type, wide;
};

// out = the sum of parts, those of the other ranks included.
struct SumPartsCall {
    const float* parts;  // [count, T, N]
    Ranks* ranks;        // or null
    void* out;           // [T, N], float32 if wide
    int64_t count, tokens, size;
    int32_t type, wide;
};

// Columns [borders[r], borders[r + 1]) of out come from rank r.
struct GatherCall {
    Ranks* ranks;
    const float* x;  // [T, this rank's columns]
    float* out;      // [T, all columns], or null where nobody asks
    const int64_t* borders;  // [size + 1]
    int64_t tokens;
};

// Each head's x times a weight of its own, without a gate. Elements of x are x_stride apart from token to
// token, x_head_stride from head to head; those of out likewise.
struct HeadsCall {
    const PackedWeight* const* weights;  // [heads]
    const int32_t* adapters;  // as in LinearCall
    const void* x;
    void* out;
    int64_t tokens, heads, x_stride, x_head_stride, out_stride, out_head_stride;
};

struct NormCall {
    const void* x;        // [T, E]
    float* residual;      // [T, E] or null: becomes (x + itself) * scale first
    const float* weight;  // [E], or null: not normalised, only rounded
    void* out;            // [T, E], may be x
    int64_t tokens, size;
    int32_t type;
    float eps, scale;
};

// x + y, or gate(x) * y.
struct CombineCall {
    const void* x;  // [T, size]
    const void* y;  // [T, size], rows y_stride apart; float32 if wide, else of x's type
    void* out;      // [T, size]
    int64_t tokens, size, y_stride;
    int32_t type, wide, gate;  // gate: a Gate, NONE for the sum
};

struct EmbedCall {
    const int64_t* token_ids;  // [T]
    const void* table;         // [V, E] of that type, or null
    const PackedWeight* packed;  // [V, E] in blocks, where there is no table
    const float* weight;       // [E], or null: not normalised, only rounded
    float* residual;           // [T, E]
    void* out;                 // [T, E]
    int64_t tokens, size, vocab_size;
    int32_t type;
    float table_scale, eps;
};

// format: a BlockFormat; blocks hold that many elements.
struct DequantizeCall {
    const void* blocks;
    void* out;
    int64_t elements;
    int32_t type, format;
};

// A null changes nothing.
struct ChooseCall {
    float* rows;               // [L, V], overwritten
    const float* temperature;  // [L] and so on; 0: the largest
    const float* min_p;
    const int64_t* top_k;
    const float* top_p;
    const double* draw;
    const int64_t* edit_starts;  // [L + 1]
    const int64_t* edit_tokens;  // [edit_starts[L]] and so on
    const float* edit_addends;
    const int64_t* places;    // [L]: lines of counts and seen, or -1
    int32_t* counts;          // [num_lines, V]
    bool* seen;               // [num_lines, V]
    const float* repetition;  // [L] and so on
    const float* frequency;
    const float* presence;
    const int32_t* allowed;   // [L, words]
    int64_t* tokens;          // [L]
    bool* finite;             // [L]
    int64_t count, size, num_lines, words;
};

// Blocks of the cache lie block_stride elements apart, those of scales scale_stride.
struct RotaryCall {
    const void* qkv;            // [T, (H + 2 * K) * D], or (H + K) * D if values are keys
    void* queries;              // [T, H, D]
    void* keys;                 // [N, K, S, D]
    void* values;               // [N, K, S, D]
    float* key_scales;          // [N, K, S] of codes, or null
    float* value_scales;        // [N, K, S] of codes, or null
    const float* query_weight;  // [D] or null
    const float* key_weight;    // [D] or null
    const float* cos;           // [num_positions, half]
    const float* sin;           // [num_positions, half]
    const int64_t* positions;   // [T]
    const int64_t* slots;       // [T]
    int64_t tokens, heads, kv_heads, head_dim, half;
    int64_t block_size, block_stride, scale_stride, num_blocks, num_positions;
    int32_t type;
    int32_t values_are_keys;    // whether values are the keys before norm and rotation
    int32_t norm_values;        // whether values are normalised, without a weight
    float eps;
};

// D is rope_dim + rank. As in LatentsArguments.
struct LatentsCall {
    const void* latents;  // [T, D]
    const void* turned;   // [T, H, rope_dim], tokens turned_stride elements apart
    void* queries;        // [T, H, D]
    void* kept;           // [N, 1, S, D], blocks as in RotaryCall
    float* scales;        // [N, 1, S] of codes, or null
    const float* weight;  // [rank]
    const float* cos;     // [num_positions, rope_dim / 2]
    const float* sin;     // the same
    const int64_t* positions;  // [T]
    const int64_t* slots;      // [T]
    int64_t tokens, heads, rope_dim, rank, turned_stride;
    int64_t block_size, block_stride, scale_stride, num_blocks, num_positions;
    int32_t type;
    float eps;
};

struct PlanCall {
    const int32_t* query_starts;  // [R + 1]
    const int32_t* context_lens;  // [R]
    const int32_t* block_tables;  // [R, table_size]
    int64_t rows, table_size, block_size;
};

struct AttendCall {
    AttentionPlan* plan;
    const void* queries;        // [T, H, D]
    const void* keys;           // as in RotaryCall
    const void* values;
    const float* key_scales;
    const float* value_scales;
    const float* sinks;         // [H] or null
    void* out;                  // [T, H * D]
    int64_t heads, kv_heads, head_dim, block_stride, scale_stride, num_blocks;
    int64_t window;             // a token sees this many latest positions
    int32_t type;
    float scale;
    float softcap;              // 0: none
};

// The states lie in pages, page_bytes each; places: [arrays, 2], which page of a row's slot each array is
// in, and bytes from there. The plan is one of block size 0.
struct DeltaNetCall {
    AttentionPlan* plan;
    const void* qkv_gate;     // [T, C + Hv * value_dim]
    const void* beta_alpha;   // [T, 2 * Hv]
    const float* filters;     // [width, C]
    const float* rate;        // [Hv]
    const float* decay_bias;  // [Hv]
    const float* norm;        // [value_dim]
    const int64_t* places;
    void* pages;
    float* mixed;             // [T, C]: scratch
    float* gates;             // [T, 2 * Hv + Hk]: scratch
    void* out;                // [T, Hv * value_dim]
    int64_t num_pages, page_bytes, tokens, width, key_heads, value_heads, key_dim, value_dim;
    int32_t type, heads_in_turn;
    float eps;
};

struct Mamba2Call {
    AttentionPlan* plan;
    const void* projected;     // [T, size + C + heads]
    const float* filters;      // [width, C]
    const float* filter_bias;  // [C] or null
    const float* rate;         // [heads]
    const float* step_bias;    // [heads]
    const float* skip;         // [heads]
    const float* norm;         // [size]
    const int64_t* places;
    void* pages;
    float* mixed;              // [T, C]: scratch
    float* steps;              // [T, 2 * heads]: scratch
    float* scanned;            // [T, size]: scratch
    void* out;                 // [T, size]
    int64_t num_pages, page_bytes, tokens, width, heads, groups, head_dim, state_dim;
    int32_t type;
    float least_step, most_step, eps;
};

struct ShortConvolutionCall {
    AttentionPlan* plan;
    const void* gated;     // [T, 3 * size]
    const float* filters;  // [width, size]
    const float* bias;     // [size] or null
    const int64_t* places;
    void* pages;
    void* out;             // [T, size]
    int64_t num_pages, page_bytes, tokens, width, size;
    int32_t type;
};

struct GateCall {
    const void* x;     // [T, size]
    const void* gate;  // [T, gate_size], gate_size being size or 1
    void* out;         // [T, size], may be x
    int64_t tokens, size, gate_size;
    int32_t type;
};

}  // namespace loire
