// Recurrences over the columns of a state, which know nothing of each other: a block of them stays in the
// L1 cache while all tokens of a row go over it.

#pragma once

#include <cstdint>

#include "vec16.h"

namespace loire {
namespace {

#if defined(LOIRE_AVX512)
constexpr int STATE_VECTORS = 4;  // of sixteen columns, computed together
#else
constexpr int STATE_VECTORS = 1;
#endif
constexpr int64_t TOKENS_TO_COPY = 4;  // so many use a copy of the columns without gaps

INLINE float softplus(float x) { return x > 20.0f ? x : __builtin_log1pf(__builtin_expf(x)); }

// How many vectors are computed together, as a type.
template <int COUNT>
struct Vectors {
    static constexpr int value = COUNT;
};

// Numbers of the copy that by_columns() needs.
constexpr int64_t columns_to_copy(int64_t rows) { return 16 * STATE_VECTORS * rows; }

// A block of up to 16 * VECTORS columns in place, or on a copy without gaps if that pays or columns are
// missing.
template <int VECTORS, typename Compute>
void state_block(float* state, int64_t rows, int64_t stride, int64_t columns, int64_t tokens, float* copy,
                 int64_t first, const Compute& compute) {
    constexpr int64_t WIDTH = 16 * VECTORS;
    const Vectors<VECTORS> vectors{};
    if (columns >= WIDTH && tokens < TOKENS_TO_COPY) return compute(vectors, state, stride, first);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t c = 0; c < WIDTH; c += 16)
            store(copy + i * WIDTH + c, load_some(state + i * stride + c, columns - c));
    compute(vectors, copy, WIDTH, first);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t c = 0; c < WIDTH; c += 16)
            store_some(state + i * stride + c, load(copy + i * WIDTH + c), columns - c);
}

// Calls compute(vectors, block, stride, first) for blocks of a state [rows, columns]: 16 * vectors columns
// from `first` on, of which some may be missing.
template <typename Compute>
void by_columns(float* state, int64_t rows, int64_t columns, int64_t tokens, float* copy,
                const Compute& compute) {
    constexpr int64_t BLOCK = 16 * STATE_VECTORS;
    int64_t c = 0;
    for (; c + BLOCK <= columns; c += BLOCK)
        state_block<STATE_VECTORS>(state + c, rows, columns, BLOCK, tokens, copy, c, compute);
    for (; c < columns; c += 16)
        state_block<1>(state + c, rows, columns, columns - c, tokens, copy, c, compute);
}

}  // namespace
}  // namespace loire
