// The C interface: what loire/kernels/native/library.py calls through ctypes.
//
// Tensors are contiguous, given by address; types are 0 for float32 and 1 for bfloat16. Functions
// return 0, or -1 after which loire_message() says what was wrong; those that make something
// return null instead. Any number of threads may use one context; they take turns.

#include <algorithm>
#include <chrono>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "amx.h"
#include "attention_plan.h"
#include "multiply.h"
#include "operations.h"
#include "packed_weight.h"
#include "pool.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace loire {

extern const Operations portable;
#if defined(__x86_64__)
extern const Operations avx2;
extern const Operations avx512;
extern const Operations avx512_bf16;
#elif defined(__aarch64__)
extern const Operations neon;
extern const Operations neon_dotprod;
#endif

namespace {

thread_local std::string message;

// Operations as they were called, to be run again with another plan.
struct Recording {
    const std::thread::id thread = std::this_thread::get_id();  // only its calls
    std::vector<std::function<void(AttentionPlan*)>> operations;
};

struct Context {
    const Operations& operations;
    Pool pool;
    WeightMemory weights;
    Scratch activations, partials;
    Forecast forecast;
    Recording* recording = nullptr;  // being made

    Context(const Operations& operations, int num_threads)
        : operations(operations), pool(num_threads) {}

    const TypedOperations& typed(int32_t type) const {
        return type == 0 ? operations.float32 : operations.bfloat16;
    }

    // scales: of keys and values in eight bits, else null.
    const CacheOperations& cache(int32_t type, const float* scales) const {
        return scales == nullptr ? typed(type).plain_cache : typed(type).int8_cache;
    }

    const LinearOperations& linear(bool is_bfloat16, WeightFormat format) const {
        const TypedOperations& operations = typed(is_bfloat16);
        switch (format) {
            case WeightFormat::INT8: return operations.int8;
            case WeightFormat::INT4: return operations.int4;
            case WeightFormat::Q4_1: return operations.q4_1;
            case WeightFormat::DENSE: break;
        }
        return operations.dense;
    }
};

#if defined(__aarch64__)
// Whether the processor has SDOT. Where nobody says so it is not used.
bool has_dot_product() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return false;
#endif
}
#endif

// Those that can be used here, best first.
std::vector<const Operations*> find_instruction_sets() {
    std::vector<const Operations*> found;
#if defined(LOIRE_EMULATE_AMX)
    if (find_amx().state == AmxState::WORKS) found.push_back(&amx);
#elif defined(__x86_64__)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("f16c");
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (has_avx512 && __builtin_cpu_supports("avx512bf16") &&
        __builtin_cpu_supports("avx512vnni") && avx512_bf16.computes_exactly()) {
#if defined(LOIRE_HAS_AMX)
        if (find_amx().state == AmxState::WORKS) found.push_back(&amx);
#endif
        found.push_back(&avx512_bf16);
    }
    if (has_avx512) found.push_back(&avx512);
    if (has_avx2) found.push_back(&avx2);
#elif defined(__aarch64__)
    if (has_dot_product()) found.push_back(&neon_dotprod);
    found.push_back(&neon);
#endif
    found.push_back(&portable);
    return found;
}

const std::vector<const Operations*>& instruction_sets() {
    static const std::vector<const Operations*> found = find_instruction_sets();
    return found;
}

std::string names() {
    std::string joined;
    for (const Operations* operations : instruction_sets())
        joined += (joined.empty() ? "" : ",") + std::string(operations->name);
    return joined;
}

const Operations& named(const std::string& name) {
    for (const Operations* operations : instruction_sets())
        if (operations->name == name) return *operations;
    throw std::invalid_argument("this processor has no " + name + "; it has " + names());
}

// Runs body, turning an exception into a message.
template <typename Body>
bool guarded(Body body) {
    try {
        body();
        return true;
    } catch (const std::bad_alloc&) {
        message = "out of memory";
    } catch (const std::exception& error) {
        message = error.what();
    }
    return false;
}

template <typename Body>
int locked(Context* context, Body body) {
    return guarded([&] {
               const std::lock_guard<std::mutex> lock(context->pool.mutex());
               body();
           })
               ? 0
               : -1;
}

// An operation of a step: runs body(plan) and notes it if a recording is being made. body keeps
// copies of what it was given, as it may be run again later.
template <typename Body>
int perform(Context* context, AttentionPlan* plan, Body body) {
    return locked(context, [&] {
        body(plan);
        Recording* recording = context->recording;
        if (recording != nullptr && recording->thread == std::this_thread::get_id())
            recording->operations.push_back(body);
    });
}

void check_range(const char* what, int64_t value, int64_t limit) {
    if (value < 0 || value >= limit)
        throw std::out_of_range(std::string(what) + " " + std::to_string(value) +
                                " is not below " + std::to_string(limit));
}

template <typename Body>
double timed(Body body) {
    const auto start = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int64_t row_pieces(int64_t tokens) { return (tokens + ROWS_PER_PIECE - 1) / ROWS_PER_PIECE; }

}  // namespace
}  // namespace loire

using namespace loire;

#pragma GCC visibility push(default)
extern "C" {

int loire_interface_version() { return 13; }

const char* loire_message() { return message.c_str(); }

// Names of the instruction sets that can be used here, best first, separated by commas.
const char* loire_instruction_sets() {
    static const std::string joined = names();
    return joined.c_str();
}

// An AmxState, and why the processor's AMX is not used ("" if it is, or if there is none).
int32_t loire_amx_state() { return int32_t(find_amx().state); }

const char* loire_why_no_amx() { return find_amx().why.c_str(); }

void* loire_open(const char* instruction_set, int32_t num_threads) {
    Context* context = nullptr;
    guarded([&] { context = new Context(named(instruction_set), num_threads); });
    return context;
}

void loire_close(void* context) { delete static_cast<Context*>(context); }

// The weight's parts, one below the other, have rows of in_features elements, row_strides[i] apart.
// format: 0 keeps the numbers, 8 and 4 quantize them to that many bits; with 41 the rows are Q4_1
// blocks, row_strides bytes apart, and type is that of x and of the bias. gate: a Gate; with one,
// results are gate(product with the first half of the rows) * product with the second.
void* loire_pack(Context* context, int32_t type, int32_t format, int32_t gate, int32_t num_parts,
                 const void* const* parts, const int64_t* part_outputs, const int64_t* row_strides,
                 const void* bias, int64_t in_features) {
    PackedWeight* packed = nullptr;
    locked(context, [&] {
        if (format != 0 && format != 8 && format != 4 && format != 41)
            throw std::invalid_argument("weights have no format " + std::to_string(format));
        check_range("number of parts", num_parts, MOST_PARTS + 1);
        std::vector<WeightPart> all;
        int64_t outputs = 0;
        for (int32_t i = 0; i < num_parts; ++i) {
            all.push_back({parts[i], part_outputs[i], row_strides[i]});
            outputs += part_outputs[i];
        }
        check_range("gate", gate + 1, int64_t(Gate::GELU) + 2);
        if (gate >= 0 && outputs % 2 != 0)
            throw std::invalid_argument(std::to_string(outputs) + " rows have no two halves");
        const auto kind = WeightFormat(format);
        packed = new PackedWeight(context->pool, context->weights,
                                  context->linear(type == 1, kind), all, bias, type == 1, kind,
                                  Gate(gate), outputs / panels_per_output(Gate(gate)), in_features);
    });
    return packed;
}

void loire_free_weight(PackedWeight* weight) { delete weight; }

// out is float32 if wide (not with a gate), else of x's type: the one that the weight was packed from.
int loire_linear(Context* context, const PackedWeight* weight, const void* x, void* out,
                 int32_t wide, int64_t tokens) {
    return perform(context, nullptr, [=](AttentionPlan*) {
        if (wide != 0 && weight->gate != Gate::NONE)
            throw std::invalid_argument("gated results are not wide");
        multiply(context->linear(weight->is_bfloat16, weight->format), context->pool,
                 context->activations, context->forecast, *weight, x, out, wide != 0, tokens);
    });
}

int loire_norm(Context* context, int32_t type, const void* x, float* residual, const float* weight,
               void* out, int64_t tokens, int64_t size, float eps) {
    return perform(context, nullptr, [=](AttentionPlan*) {
        const NormArguments arguments{x, residual, weight, out, tokens, size, eps};
        context->pool.run(row_pieces(tokens), context->typed(type).norm, &arguments);
    });
}

// table: [vocab_size, size] of that type.
int loire_embed(Context* context, int32_t type, const int64_t* token_ids, const void* table,
                const float* weight, float* residual, void* out, int64_t tokens, int64_t size,
                int64_t vocab_size, float table_scale, float eps) {
    return perform(context, nullptr, [=](AttentionPlan*) {
        for (int64_t t = 0; t < tokens; ++t) check_range("token id", token_ids[t], vocab_size);
        const EmbedArguments arguments{token_ids, table, weight, residual, out,
                                       tokens,    size,  table_scale, eps};
        context->pool.run(row_pieces(tokens), context->typed(type).embed, &arguments);
    });
}

// format: a BlockFormat; blocks hold that many elements.
int loire_dequantize(Context* context, int32_t type, int32_t format, const void* blocks, void* out,
                     int64_t elements) {
    return locked(context, [&] {
        const DequantizeArguments arguments{blocks, out, elements, BlockFormat(format)};
        const int64_t pieces = (elements + DEQUANTIZED_PER_PIECE - 1) / DEQUANTIZED_PER_PIECE;
        context->pool.run(pieces, context->typed(type).dequantize, &arguments);
    });
}

int loire_largest(Context* context, const float* rows, int64_t* indices, bool* finite,
                  int64_t count, int64_t size) {
    return locked(context, [&] {
        const LargestArguments arguments{rows, indices, finite, size};
        context->pool.run(count, context->operations.largest, &arguments);
    });
}

int loire_draw(Context* context, const float* rows, const float* temperature, const float* min_p,
               const int64_t* top_k, const float* top_p, const double* draw, int64_t* tokens,
               int64_t count, int64_t size) {
    return locked(context, [&] {
        const DrawArguments arguments{rows, size, temperature, min_p, top_k, top_p, draw, tokens};
        context->pool.run(count, context->operations.draw, &arguments);
    });
}

int loire_rotary(Context* context, int32_t type, const void* qkv, void* queries, void* keys,
                 void* values, float* key_scales, float* value_scales, const float* query_weight,
                 const float* key_weight, const float* cos, const float* sin, const int64_t* positions,
                 const int64_t* slots, int64_t tokens, int64_t heads, int64_t kv_heads,
                 int64_t head_dim, int64_t half, int64_t block_size, int64_t block_stride,
                 int64_t scale_stride, int64_t num_blocks, int64_t num_positions, float eps) {
    return perform(context, nullptr, [=](AttentionPlan*) {
        for (int64_t t = 0; t < tokens; ++t) {
            check_range("position", positions[t], num_positions);
            check_range("slot", slots[t], num_blocks * block_size);
        }
        const RotaryArguments arguments{
            qkv,          queries,   keys,         values,     key_scales,   value_scales,
            query_weight, key_weight, cos,         sin,        positions,    slots,
            tokens,       heads,     kv_heads,     head_dim,   half,         block_size,
            block_stride, scale_stride, eps};
        context->pool.run(row_pieces(tokens), context->cache(type, key_scales).rotary, &arguments);
    });
}

void* loire_plan(Context* context, const int32_t* query_starts, const int32_t* context_lens,
                 const int32_t* block_tables, int64_t rows, int64_t table_size,
                 int64_t block_size) {
    AttentionPlan* plan = nullptr;
    guarded([&] {
        context->pool.wake();  // a step begins
        plan = new AttentionPlan(query_starts, context_lens, block_tables, rows, table_size,
                                 block_size, context->pool.num_threads());
    });
    return plan;
}

void loire_free_plan(AttentionPlan* plan) { delete plan; }

int loire_attend(Context* context, AttentionPlan* given, int32_t type, const void* queries,
                 const void* keys, const void* values, const float* key_scales,
                 const float* value_scales, void* out, int64_t heads, int64_t kv_heads,
                 int64_t head_dim, int64_t block_stride, int64_t scale_stride, int64_t num_blocks,
                 int64_t window, float scale, float softcap) {
    return perform(context, given, [=](AttentionPlan* plan) {
        check_range("block", plan->lowest_block, num_blocks);
        check_range("block", plan->highest_block, num_blocks);
        AttentionPieces& cut = plan->pieces(heads, kv_heads, window);
        std::copy(cut.splits.begin(), cut.splits.end(), cut.unfinished.begin());
        const int64_t stride = (head_dim + 15) / 16 * 16;
        const int64_t partial_floats = cut.partial_rows * (stride + 2);
        const size_t partial_bytes = size_t(cut.partials * partial_floats) * sizeof(float);
        const AttentionArguments arguments{
            queries,
            keys,
            values,
            key_scales,
            value_scales,
            out,
            plan->block_tables,
            plan->table_size,
            heads,
            kv_heads,
            head_dim,
            plan->block_size,
            block_stride,
            scale_stride,
            window,
            scale,
            softcap,
            cut.pieces.data(),
            cut.members.data(),
            cut.merges.data(),
            cut.unfinished.data(),
            reinterpret_cast<float*>(context->partials.reserve(partial_bytes)),
            partial_floats};
        context->pool.run(int64_t(cut.pieces.size()), context->cache(type, key_scales).attention,
                          &arguments, Order::EVERY_NTH);
    });
}

// From now on notes which operations of a step this thread calls, until loire_end_recording.
void* loire_record(Context* context) {
    Recording* recording = nullptr;
    locked(context, [&] {
        if (context->recording != nullptr)
            throw std::logic_error("another thread is recording a step");
        recording = context->recording = new Recording;
    });
    return recording;
}

int loire_end_recording(Context* context) {
    return locked(context, [&] { context->recording = nullptr; });
}

// Runs the operations again, on the memory that they were given then; attention by this plan.
int loire_replay(Context* context, const Recording* recording, AttentionPlan* plan) {
    return locked(context, [&] {
        for (const auto& operation : recording->operations) operation(plan);
    });
}

void loire_free_recording(Recording* recording) { delete recording; }

// Reads memory, a multiple of 256 KiB, once; bytes read per second of wall time.
double loire_read_limit(Context* context, const char* memory, int64_t bytes) {
    double speed = 0.0;
    locked(context, [&] {
        const int64_t pieces = bytes / LIMIT_PIECE_BYTES;
        std::vector<float> results(size_t(pieces) + 1);
        const LimitArguments arguments{memory, results.data()};
        const double seconds =
            timed([&] { context->pool.run(pieces, context->operations.read_limit, &arguments); });
        speed = double(pieces * LIMIT_PIECE_BYTES) / seconds;
    });
    return speed;
}

// Multiplies and adds in registers; floating-point operations per second of wall time.
double loire_multiply_limit(Context* context, int32_t type) {
    double speed = 0.0;
    locked(context, [&] {
        const TypedOperations& typed = context->typed(type);
        const int64_t pieces = 4 * context->pool.num_threads();
        const std::vector<float> memory(16, 1e-3f);
        std::vector<float> results(size_t(pieces), 0.0f);
        const LimitArguments arguments{reinterpret_cast<const char*>(memory.data()),
                                       results.data()};
        const double seconds =
            timed([&] { context->pool.run(pieces, typed.multiply_limit, &arguments); });
        speed = double(pieces * LIMIT_ROUNDS * typed.multiply_limit_flops) / seconds;
    });
    return speed;
}

}  // extern "C"
#pragma GCC visibility pop
