// What the machine can do at best.

#include <chrono>
#include <vector>

#include "context.h"

using namespace loire;

namespace {

template <typename Body>
double timed(Body body) {
    const auto start = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

// Reads memory, a multiple of 256 KiB, once; bytes read per second of wall time.
LOIRE_EXPORT double loire_read_limit(Context* context, const char* memory, int64_t bytes) {
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
LOIRE_EXPORT double loire_multiply_limit(Context* context, int32_t type) {
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
