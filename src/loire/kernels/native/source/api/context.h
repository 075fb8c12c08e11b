// What an open library holds, and how its functions run an operation.

#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../kernels/table.h"
#include "../runtime/attention_plan.h"
#include "../runtime/experts.h"
#include "../runtime/forecast.h"
#include "../runtime/memory.h"
#include "../runtime/packed_weight.h"
#include "../runtime/pool.h"
#include "../runtime/summed.h"

#define LOIRE_EXPORT extern "C" __attribute__((visibility("default")))

namespace loire {

// What the last function that failed on this thread found wrong.
extern thread_local std::string message;

// Operations as they were called, to be run again with other plans.
struct Recording {
    struct Operation {
        std::function<void(AttentionPlan*)> run;
        size_t plan;  // which of the plans it was given; behind the last one: none
    };

    const std::thread::id thread = std::this_thread::get_id();  // only its calls
    const std::vector<AttentionPlan*> plans;  // one per cache group, while it is made
    std::vector<Operation> operations;

    explicit Recording(std::vector<AttentionPlan*> plans) : plans(std::move(plans)) {}

    size_t index_of(const AttentionPlan* plan) const {
        return size_t(std::find(plans.begin(), plans.end(), plan) - plans.begin());
    }
};

struct Context {
    const Operations& operations;
    Pool pool;
    WeightMemory weights;
    Scratch activations, partials, hidden;
    int64_t token_bytes = 0;  // most that a token's inputs take, packed for one of the weights
    ExpertsScratch experts;
    ChunkedScratch chunked;
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

    // Null for a format that there is not.
    const LinearOperations* linear(bool is_bfloat16, WeightFormat format) const {
        const TypedOperations& operations = typed(is_bfloat16);
        if (format == WeightFormat::DENSE) return &operations.dense;
        if (format == WeightFormat::INT8) return &operations.int8;
        if (format == WeightFormat::INT4) return &operations.int4;
        return operations.stored(BlockFormat(int32_t(format) - int32_t(WeightFormat::FIRST_BLOCKS)));
    }
};

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

// The same while nobody else uses the context's threads; 0, or -1 and a message.
template <typename Body>
int locked(Context* context, Body body) {
    const bool succeeded = guarded([&] {
        const std::lock_guard<std::mutex> lock(context->pool.mutex());
        body();
    });
    return succeeded ? 0 : -1;
}

// An operation of a step: runs body(plan) and notes it if a recording is being made. body keeps
// copies of what it was given, as it may be run again later.
template <typename Body>
int perform(Context* context, AttentionPlan* plan, Body body) {
    return locked(context, [&] {
        body(plan);
        Recording* recording = context->recording;
        if (recording != nullptr && recording->thread == std::this_thread::get_id())
            recording->operations.push_back({body, recording->index_of(plan)});
    });
}

// Throws std::out_of_range unless 0 <= value < limit.
void check_range(const char* what, int64_t value, int64_t limit);

// Of the operations that go row by row.
inline int64_t row_pieces(int64_t tokens) { return (tokens + ROWS_PER_PIECE - 1) / ROWS_PER_PIECE; }

}  // namespace loire
