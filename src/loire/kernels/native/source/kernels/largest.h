// The largest entry of each row, and whether all entries are finite: what greedy sampling needs.

#pragma once

#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

// One row of float32. The second look finds the row in the cache.
void largest_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const LargestArguments*>(untyped);
    const float* row = a.rows + piece * a.size;
    Vec16 most[4], zeros[4];
    for (int j = 0; j < 4; ++j) most[j] = broadcast(-__builtin_inff()), zeros[j] = zero();
    const auto look = [&](const Vec16& x, int j) {
        most[j] = maximum(x, most[j]);
        zeros[j] = fma(x, zero(), zeros[j]);  // zero times what is not finite is NaN
    };
    int64_t i = 0;
    for (; i + 64 <= a.size; i += 64)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) look(load(row + i + 16 * j), j);
    float high = largest(maximum(maximum(most[0], most[1]), maximum(most[2], most[3])));
    bool finite = sum((zeros[0] + zeros[1]) + (zeros[2] + zeros[3])) == 0.0f;
    for (; i < a.size; ++i) {
        high = row[i] > high ? row[i] : high;
        finite = finite && row[i] - row[i] == 0.0f;
    }
    a.finite[piece] = finite;
    a.indices[piece] = 0;
    constexpr int64_t BLOCK = 1024;
    for (i = 0; i + BLOCK <= a.size; i += BLOCK) {
        Vec16 here = load(row + i);
        for (int64_t j = 16; j < BLOCK; j += 16) here = maximum(load(row + i + j), here);
        if (largest(here) == high) break;
    }
    for (; i < a.size; ++i)
        if (row[i] == high) {
            a.indices[piece] = i;
            return;
        }
}

}  // namespace
}  // namespace loire
