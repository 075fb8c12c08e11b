// The C interface, which loire/kernels/native/library.py calls through ctypes: opening the library, and
// recording steps. weights.cpp, experts.cpp, rows.cpp, attention.cpp, recurrent.cpp, sampling.cpp,
// ranks.cpp and limits.cpp have the rest.
//
// Functions return 0, or -1 after which loire_message() says what was wrong; those that make something
// return null instead. Any number of threads may use one context; they take turns.

#include <stdexcept>

#include "../runtime/amx.h"
#include "../runtime/instruction_sets.h"
#include "context.h"

using namespace loire;

// Of what the functions do; layout.cpp says what they are given.
LOIRE_EXPORT int loire_interface_version() { return 35; }

LOIRE_EXPORT const char* loire_message() { return message.c_str(); }

// Names of the instruction sets that can be used here, best first, separated by commas.
LOIRE_EXPORT const char* loire_instruction_sets() { return instruction_set_names().c_str(); }

// An AmxState, and why the processor's AMX is not used ("" if it is, or if there is none).
LOIRE_EXPORT int32_t loire_amx_state() { return int32_t(find_amx().state); }

LOIRE_EXPORT const char* loire_why_no_amx() { return find_amx().why.c_str(); }

LOIRE_EXPORT void* loire_open(const char* instruction_set, int32_t num_threads) {
    Context* context = nullptr;
    guarded([&] { context = new Context(operations_of(instruction_set), num_threads); });
    return context;
}

LOIRE_EXPORT void loire_close(void* context) { delete static_cast<Context*>(context); }

// From now on notes which operations of a step this thread calls, until loire_end_recording.
// plans: those of the step, one per cache group.
LOIRE_EXPORT void* loire_record(Context* context, AttentionPlan* const* plans, int64_t count) {
    Recording* recording = nullptr;
    locked(context, [&] {
        if (context->recording != nullptr)
            throw std::logic_error("another thread is recording a step");
        recording = context->recording = new Recording({plans, plans + count});
    });
    return recording;
}

LOIRE_EXPORT int loire_end_recording(Context* context) {
    return locked(context, [&] { context->recording = nullptr; });
}

// Runs the operations again, on the memory that they were given then; attention by these plans, as
// many as there were then.
LOIRE_EXPORT int loire_replay(Context* context, const Recording* recording,
                              AttentionPlan* const* plans) {
    return locked(context, [&] {
        for (const auto& operation : recording->operations)
            operation.run(operation.plan < recording->plans.size() ? plans[operation.plan]
                                                                   : nullptr);
    });
}

LOIRE_EXPORT void loire_free_recording(Recording* recording) { delete recording; }
