// The largest entry of a row, and whether all entries are finite: what greedy sampling needs.

#pragma once

#include "vec16.h"

namespace loire {
namespace {

struct Largest {
    int64_t index;  // the first of equals; 0 for a row with NaN
    bool finite;
};

// Of a row. The second look finds it in the cache.
INLINE Largest largest_of(const float* row, int64_t size) {
    Vec16 most[4], zeros[4];
    for (int j = 0; j < 4; ++j) most[j] = broadcast(-__builtin_inff()), zeros[j] = zero();
    const auto look = [&](const Vec16& x, int j) {
        most[j] = maximum(x, most[j]);
        zeros[j] = fma(x, zero(), zeros[j]);  // zero times what is not finite is NaN
    };
    int64_t i = 0;
    for (; i + 64 <= size; i += 64)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) look(load(row + i + 16 * j), j);
    float high = largest(maximum(maximum(most[0], most[1]), maximum(most[2], most[3])));
    bool finite = sum((zeros[0] + zeros[1]) + (zeros[2] + zeros[3])) == 0.0f;
    for (; i < size; ++i) {
        high = row[i] > high ? row[i] : high;
        finite = finite && row[i] - row[i] == 0.0f;
    }
    constexpr int64_t BLOCK = 1024;
    for (i = 0; i + BLOCK <= size; i += BLOCK) {
        Vec16 here = load(row + i);
        for (int64_t j = 16; j < BLOCK; j += 16) here = maximum(load(row + i + j), here);
        if (largest(here) == high) break;
    }
    for (; i < size; ++i)
        if (row[i] == high) return {i, finite};
    return {0, finite};
}

}  // namespace
}  // namespace loire
