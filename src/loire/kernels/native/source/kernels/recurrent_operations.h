// What mixers with a state are given (loire/kernels/interface/recurrent.py defines them), and gates.

#pragma once

#include <cstdint>

#include "operations.h"

namespace loire {

// The rows of a step and the states they go on from, which lie in pages.
struct StateRows {
    const int32_t* tables;        // [rows, table_size]: the pages of each row's slot
    const int32_t* query_starts;  // [rows + 1]
    const int64_t* places;        // [arrays, 2]: a page of the slot, and bytes from there
    char* pages;
    int64_t rows, table_size, page_bytes;

    float* array(int64_t row, int64_t index) const {
        const int64_t page = tables[row * table_size + places[2 * index]];
        return reinterpret_cast<float*>(pages + page * page_bytes + places[2 * index + 1]);
    }

    int64_t row_of(int64_t token) const {
        int64_t low = 0, high = rows;
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            (query_starts[middle] <= token ? low : high) = middle;
        }
        return low;
    }
};

struct DeltaNetArguments {
    StateRows states;         // array 0: [width - 1, C]; 1 + head: [key_dim, value_dim]
    const void* qkv_gate;     // [T, C + Hv * value_dim]
    const void* beta_alpha;   // [T, 2 * Hv]
    const float* filters;     // [width, C]
    const float* rate;        // [Hv]
    const float* decay_bias;  // [Hv]
    const float* norm;        // [value_dim]
    float* mixed;             // [T, C]: convolved; queries and keys of length 1
    float* gates;             // [T, 2 * Hv + Hk]: decays, betas, products of query and key
    void* out;                // [T, Hv * value_dim]
    int64_t tokens, width, key_heads, value_heads, key_dim, value_dim;
    bool heads_in_turn;
    float eps;

    int64_t key_size() const { return key_heads * key_dim; }
    int64_t value_size() const { return value_heads * value_dim; }
    int64_t channels() const { return 2 * key_size() + value_size(); }
    int64_t stride() const { return channels() + value_size(); }  // of qkv_gate
    int64_t gates_size() const { return 2 * value_heads + key_heads; }
    int64_t key_head(int64_t head) const {
        return heads_in_turn ? head % key_heads : head / (value_heads / key_heads);
    }
};

struct Mamba2Arguments {
    StateRows states;          // array 0: [width - 1, C]; 1 + head: [state_dim, head_dim]
    const void* projected;     // [T, size + C + heads]: gates, x with B and C, steps
    const float* filters;      // [width, C]
    const float* filter_bias;  // [C] or null
    const float* rate;         // [heads]
    const float* step_bias;    // [heads]
    const float* skip;         // [heads]
    const float* norm;         // [size]
    float* mixed;              // [T, C]: convolved
    float* steps;              // [T, 2 * heads]: decays, steps
    float* scanned;            // [T, size]
    void* out;                 // [T, size]
    int64_t tokens, width, heads, groups, head_dim, state_dim;
    float least_step, most_step, eps;

    int64_t size() const { return heads * head_dim; }
    int64_t group_states() const { return groups * state_dim; }
    int64_t channels() const { return size() + 2 * group_states(); }
    int64_t stride() const { return size() + channels() + heads; }  // of projected
};

struct ShortConvolutionArguments {
    StateRows states;      // array 0: [width - 1, size]
    const void* gated;     // [T, 3 * size]
    const float* filters;  // [width, size]
    const float* bias;     // [size] or null
    void* out;             // [T, size]
    int64_t tokens, width, size;
};

struct GateArguments {
    const void* x;     // [T, size]
    const void* gate;  // [T, gate_size]
    void* out;         // [T, size], may be x
    int64_t tokens, size, gate_size;  // gate_size: size or 1
};

// Pieces are ROWS_PER_PIECE tokens, but where it says otherwise.
struct RecurrentOperations {
    PieceFunction delta_inputs;
    PieceFunction delta_rule;    // a value head of a row: rows * Hv pieces, after delta_inputs
    PieceFunction mamba2_inputs;
    PieceFunction mamba2_scan;    // a head of a row: rows * heads pieces, after mamba2_inputs
    PieceFunction mamba2_outputs;  // after mamba2_scan
    PieceFunction convolution;
    PieceFunction kept_inputs;   // a row, after convolution
    PieceFunction gate;
};

}  // namespace loire
