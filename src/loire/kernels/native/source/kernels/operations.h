// What each instruction set provides: functions that compute one piece of an operation, and the
// arguments they read. A piece is what the thread pool hands out; pieces write disjoint outputs.
//
// Letters in shapes as in loire/kernels/interface.py: T tokens, E hidden size, I intermediate size,
// H query heads, K key/value heads, D head dimension, N blocks, S tokens per block.

#pragma once

#include <cstddef>
#include <cstdint>

namespace loire {

struct bfloat16 {
    uint16_t bits;
};

// Memory of one thread, kept from piece to piece; the contents are not.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch();

    // At least that many bytes, aligned to 4 KiB.
    char* reserve(size_t bytes);

  private:
    char* data_ = nullptr;
    size_t size_ = 0;
};

using PieceFunction = void (*)(const void* arguments, int64_t piece, Scratch& scratch);

constexpr int64_t ROWS_PER_PIECE = 8;  // of the operations that go row by row

struct NormArguments {
    const void* x;         // [T, E]
    float* residual;       // [T, E] or null; becomes (x + itself) * scale, which is normalised then
    const float* weight;   // [E], or null: not normalised, only rounded
    void* out;             // [T, E] in x's type; may be x
    int64_t tokens, size;
    float eps, scale;
};

struct EmbedArguments {
    const int64_t* token_ids;  // [T]
    const void* table;         // [V, E], or a packed weight
    const float* weight;       // [E], or null: not normalised, only rounded
    float* residual;           // [T, E]: rows of the table times table_scale
    void* out;                 // [T, E] in the table's type: those, normalised
    int64_t tokens, size;
    float table_scale, eps;
};

// What tokens of rows of logits are chosen under; a piece is a row. What is null changes nothing.
struct ChooseArguments {
    float* rows;  // [count, size], overwritten
    int64_t size;
    const float* temperature;  // [count] and so on; 0: the largest, the first of equals
    const float* min_p;
    const int64_t* top_k;
    const float* top_p;
    const double* draw;
    const int64_t* edit_starts;  // [count + 1]: where each row's edits begin
    const int64_t* edit_tokens;
    const float* edit_addends;
    const int64_t* places;    // [count]: the row's line of counts and seen, or -1
    int32_t* counts;          // [lines, size]: how often tokens came in the output
    uint8_t* seen;            // [lines, size]: whether they came in prompt or output
    const float* repetition;  // [count] and so on, of rows with a line
    const float* frequency;
    const float* presence;
    const uint32_t* allowed;  // [count, words]: bit t % 32 of word t / 32: whether token t may come
    int64_t words;
    int64_t* tokens;  // [count]
    bool* finite;     // [count]: whether all logits were
};

struct RotaryArguments {
    const void* qkv;              // [T, (H + 2 * K) * D]
    void* queries;                // [T, H, D]
    void* keys;                   // [N, K, S, D], blocks block_stride elements apart
    void* values;                 // the same
    float* key_scales;            // [N, K, S], of codes, blocks scale_stride elements apart
    float* value_scales;          // the same
    const float* query_weight;    // [D] or null: RMSNorm over each head
    const float* key_weight;      // [D] or null
    const float* cos;             // [positions, half]
    const float* sin;             // [positions, half]
    const int64_t* positions;     // [T]
    const int64_t* slots;         // [T]
    int64_t tokens, heads, kv_heads, head_dim, half, block_size, block_stride, scale_stride;
    bool values_are_keys;  // values are the keys before norm and rotation: qkv is [T, (H + K) * D]
    bool norm_values;      // RMSNorm over each value, without a weight
    float eps;
};

// D is rope_dim + rank.
struct LatentsArguments {
    const void* latents;  // [T, D]: the latent, then the key that is rotated
    const void* turned;   // [T, H, rope_dim] of queries, tokens turned_stride elements apart
    void* queries;        // [T, H, D]: the first rope_dim are written
    void* kept;           // [N, S, D], blocks block_stride elements apart
    float* scales;        // [N, S], of codes, blocks scale_stride elements apart
    const float* weight;  // [rank], of the latents' norm
    const float* cos;     // [positions, rope_dim / 2]
    const float* sin;     // the same
    const int64_t* positions;  // [T]
    const int64_t* slots;      // [T]
    int64_t tokens, heads, rope_dim, rank, turned_stride, block_size, block_stride, scale_stride;
    float eps;
};

constexpr int64_t SPLIT = 256;  // keys per partial softmax, counted from position 0

// Some tokens of one row, which follow one another.
struct AttentionQueries {
    int32_t first_token;  // in the flat batch
    int32_t tokens;
    int64_t first_position;  // of first_token in its sequence
};

// Queries with one key/value head; all their keys, or those of one split. Where there are several
// queries, their rows have the same blocks there, and each token sees the whole split.
struct AttentionPiece {
    int32_t row;  // whose block table leads to the keys
    int32_t kv_head;
    int32_t split;  // the only split to compute, or -1: all of them
    int32_t first_member, members;
};

// Queries of a piece, and which merge their result goes to (-1: it is complete).
struct AttentionMember {
    AttentionQueries queries;
    int32_t merge;
};

// Splits of queries with one key/value head that several pieces compute; the last to finish merges
// them.
struct AttentionMerge {
    int64_t first_partial;  // index of the first split's partials
    int32_t first_split;
    int32_t splits;
};

struct AttentionArguments {
    const void* queries;  // [T, H, D]
    const void* keys;     // [N, K, S, D], blocks block_stride elements apart
    const void* values;   // the same
    const float* key_scales;    // [N, K, S], of codes, blocks scale_stride elements apart
    const float* value_scales;  // the same
    void* out;            // [T, H * D]
    const int32_t* block_tables;  // [R, table_size]
    int64_t table_size, heads, kv_heads, head_dim, block_size, block_stride, scale_stride;
    int64_t window;  // a token sees this many latest positions
    float scale;
    float softcap;  // 0: none
    const float* sinks;  // [H] or null: scores that each head's softmax has beside those of the keys
    const AttentionPiece* pieces;
    const AttentionMember* members;
    const AttentionMerge* merges;
    int32_t* unfinished;  // per merge: splits that are still to come
    float* partials;      // per split: [rows][D in whole vectors], their maxima, their sums
    int64_t partial_floats;  // of one split
};

// Weights are packed in panels of outputs and steps of inputs.
constexpr int64_t STEP = 32, PANEL = 32;

struct PackActivationsArguments {
    const void* x;  // [T, in]
    void* packed;   // see linear.h, linear_amx.h, linear_quantized.h
    int64_t tokens, in_features, steps;
    int64_t tokens_per_block;
};

// What becomes of a product whose weight has two halves of rows: gate(first) * second. The panels of
// such a weight alternate, 32 outputs of the first half and the same of the second. SQUARED_RELU has no
// second half: max(x, 0)^2 of each result (So et al. 2021, "Primer").
enum class Gate : int32_t {
    NONE = -1,
    SILU = 0,
    GELU_TANH = 1,
    GELU = 2,
    CLAMPED_SWIGLU = 3,
    SQUARED_RELU = 4
};

// Of CLAMPED_SWIGLU: with the first half g at most limit and the second u within -limit and limit,
// (u + 1) * g * sigmoid(alpha * g).
struct Clamp {
    float alpha, limit;
};

// Rows that are added or gated: x + y, or gate(x) * y.
struct CombineArguments {
    const void* x;  // [T, size]
    const void* y;  // [T, size], rows y_stride apart, of x's type or float32
    void* out;      // [T, size] in x's type
    int64_t tokens, size, y_stride;
    bool wide;  // whether y is float32
    Gate gate;  // NONE: the sum
};

constexpr int64_t panels_per_output(Gate gate) {
    return gate == Gate::NONE || gate == Gate::SQUARED_RELU ? 1 : 2;
}

// Of which ranks of an adapter a panel has something, and where that begins, in elements.
struct PanelRanks {
    int64_t start;
    int32_t first, last;
};

// Where an adapter has the output of a panel: in bfloat16 outputs i and i + 16 lie side by side, so that
// a word is widened to both at once.
constexpr int64_t panel_column(int64_t output, bool is_bfloat16) {
    return is_bfloat16 ? output % 16 * 2 + output / 16 : output;
}

// Ranks whose halves `down` lie together, so that they are read as one stream, and the elements of each
// that lie so: a line.
constexpr int64_t DOWN_RANKS = 8;
constexpr int64_t down_line(int64_t element_bytes) { return 64 / element_bytes; }

// Elements of a rank: whole lines.
constexpr int64_t down_row(int64_t in_features, int64_t element_bytes) {
    const int64_t line = down_line(element_bytes);
    return (in_features + line - 1) / line * line;
}

// What an adapter adds to a product: up (down x), by panels. Both are of x's type.
struct Adapter {
    // For each DOWN_RANKS ranks, or those that are left: [lines of a row][ranks][a line], zeros behind
    // the last input.
    const void* down = nullptr;
    const void* up = nullptr;             // for each panel [its ranks][PANEL], see panel_column()
    const PanelRanks* panels = nullptr;
    int64_t rank = 0;                     // 0: nothing is added
    int64_t num_panels = 0;
};

// The tokens that have one adapter, so that its weights are read once for all of them.
struct AdapterGroup {
    const Adapter* adapter;
    const int32_t* tokens;  // [count], ascending
    int64_t count;
};

// Which tokens have which adapter, and down x of those that have one.
struct AdaptedTokens {
    const AdapterGroup* groups = nullptr;
    int64_t num_groups = 0;  // 0: no token has one
    int64_t ranks = 0;       // of the groups' adapters together
    float* hidden = nullptr;  // [T, hidden_stride]
    int64_t hidden_stride = 0;
};

// Some ranks of an adapter, down x of some of its group's tokens.
struct LowRankPiece {
    int32_t group, first_token, last_token, first_rank, last_rank;
};

struct LowRankArguments {
    AdaptedTokens adapted;
    const LowRankPiece* pieces;
    int64_t num_pieces;
    const char* x;        // rows of in_features
    int64_t x_stride;     // bytes from row to row
    const int64_t* rows;  // [T]: which row of x each token is; null: one after another
    int64_t in_features;
};

struct LinearArguments {
    const void* weight;       // packed
    const float* scales;      // [rows of whole panels] or null: the sums are multiplied by them
    const float* bias;        // [rows of whole panels] or null
    const void* activations;  // packed
    void* out;                // [T, out], of x's type or float32
    bool wide;                // whether out is float32; not with a gate
    Gate gate;
    Clamp clamp;
    int64_t tokens, steps, panels, out_features;
    int64_t out_stride;  // from token to token
    int64_t tokens_per_block;  // of the packed activations
    int64_t tokens_per_piece;  // whole blocks
    int64_t panels_per_piece;  // both of a gated output
    AdaptedTokens adapted;
};

// What a token's scores of the experts are made of, and so its experts' weights.
enum class Scores : int32_t {
    SOFTMAX = 0,            // over all experts
    SOFTMAX_OF_CHOSEN = 1,  // over those that were chosen
    SIGMOID = 2,            // of each by itself
};

// A token chooses the top_k experts with the largest scores, the first of equals: of chosen_groups of
// the groups, of equal size, in which they lie. A group counts as its best expert, or with SIGMOID as
// its two best together.
struct RouteArguments {
    const float* logits;  // [T, experts]
    const float* bias;    // [experts] or null: added to scores where experts are compared
    const float* expert_scales;  // [experts] or null: weights are multiplied by them
    int32_t* chosen;      // [T, top_k], the best first
    float* weights;       // [T, top_k]: their scores, perhaps divided by their sum, times scale
    int64_t tokens, experts, top_k, groups, chosen_groups;
    Scores scores;
    bool renormalise;
    float scale;
};

// What became of each token in its experts, added up.
struct SumExpertsArguments {
    const void* made;      // [rows, E] of out's type
    const int64_t* rows;   // [T, top_k]: of made, in the order of the experts
    const float* weights;  // [T, top_k] of those
    void* out;             // [T, E]
    int64_t tokens, top_k, size;
};

// Block formats of GGUF, by their numbers there.
enum class BlockFormat : int32_t {
    Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13,
    Q6_K = 14, IQ2_XXS = 16, IQ2_XS = 17, IQ3_XXS = 18, IQ4_NL = 20, IQ3_S = 21, IQ2_S = 22,
    IQ4_XS = 23, MXFP4 = 39, W4_128 = 60, W4Z_128 = 61, W4Z_32 = 62, W8_128 = 63,
    P2 = 64, P3 = 65, P4 = 66, F8_128 = 67, NV4_128 = 68
};
constexpr int LAST_BLOCK_FORMAT = 68;

constexpr int64_t DEQUANTIZED_PER_PIECE = 16384;

struct DequantizeArguments {
    const void* blocks;
    void* out;          // [elements]
    int64_t elements;   // of whole blocks
    BlockFormat format;
};

constexpr int64_t LIMIT_PIECE_BYTES = 256 << 10, LIMIT_ROUNDS = 100000;

struct LimitArguments {
    const char* memory;
    float* results;  // per piece, so that nothing is left out
};

// Rows of a weight that lie together in memory.
struct WeightPart {
    const void* rows;  // [outputs, in]
    int64_t outputs, stride;  // in elements, from row to row
    const int8_t* levels = nullptr;  // [outputs, LEVELS], of formats that have such; null: the usual ones
};

constexpr int MOST_PARTS = 3;

// What codes of four bits and fewer stand for, in formats where rows may have levels of their own.
constexpr int64_t LEVELS = 16;

// The row of a weight that is packed as the given one, or -1 for none. out_features: after the gate.
constexpr int64_t source_row(int64_t packed, Gate gate, int64_t out_features) {
    const int64_t per_output = panels_per_output(gate), panel = packed / PANEL;
    const int64_t out = panel / per_output * PANEL + packed % PANEL;
    return out < out_features ? panel % per_output * out_features + out : -1;
}

// A weight [out, in] to be packed, its parts one below the other; a piece is a panel.
struct PackArguments {
    WeightPart parts[MOST_PARTS];
    char* packed;
    float* scales;  // per row, of int8
    Gate gate;
    int64_t out_features, in_features, steps, panel_bytes;

    // The row that is packed as the given one, or null for none.
    const void* row(int64_t packed, int64_t element_bytes) const {
        const Place place = place_of(packed);
        if (place.part == nullptr) return nullptr;
        return static_cast<const char*>(place.part->rows) +
               place.row * place.part->stride * element_bytes;
    }

    // That row's levels, or null for the usual ones.
    const int8_t* levels(int64_t packed) const {
        const Place place = place_of(packed);
        if (place.part == nullptr || place.part->levels == nullptr) return nullptr;
        return place.part->levels + place.row * LEVELS;
    }

  private:
    struct Place {
        const WeightPart* part;  // or null
        int64_t row;
    };

    Place place_of(int64_t packed) const {
        int64_t out = source_row(packed, gate, out_features);
        if (out < 0) return {nullptr, 0};
        for (const WeightPart& part : parts) {
            if (out < part.outputs) return {&part, out};
            out -= part.outputs;
        }
        return {nullptr, 0};
    }
};

// How to pack and to multiply with weights of one format.
struct LinearOperations {
    PieceFunction pack, pack_activations, linear, low_rank;
    int64_t head_bytes;               // of a panel, before its steps
    int64_t step_inputs, step_bytes;  // of a step of a panel
    int64_t packed_bytes_per_step;   // of one token's activations
    int64_t (*tokens_per_block)(int64_t tokens);  // of packed activations, for so many in all
    int64_t panels_per_piece;        // at least, where activations leave the L1 cache
    PieceFunction embed;             // looks rows of the weight up, or null
};

// Over keys and values of one type.
struct CacheOperations {
    PieceFunction rotary, latents, attention;
};

// Products with the blocks of some formats, by BlockFormat; the others without functions.
struct BlockOperations {
    LinearOperations formats[LAST_BLOCK_FORMAT + 1];
};

}  // namespace loire
