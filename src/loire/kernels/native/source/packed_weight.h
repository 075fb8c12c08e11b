// A weight in panels, in the layout that an instruction set reads.

#pragma once

#include <cstdint>

#include "pool.h"

namespace loire {

class PackedWeight {
  public:
    // weight [out, in] with rows of row_stride elements, bias [out] or null, both of one type.
    PackedWeight(Pool& pool, const void* weight, const void* bias, bool is_bfloat16,
                 int64_t out_features, int64_t in_features, int64_t row_stride,
                 Layout layout);
    ~PackedWeight();
    PackedWeight(const PackedWeight&) = delete;
    PackedWeight& operator=(const PackedWeight&) = delete;

    const bool is_bfloat16;
    const int64_t out_features, in_features;
    const int64_t panels, steps, panel_bytes;
    char* data = nullptr;
    float* bias = nullptr;  // [panels * PANEL]
};

}  // namespace loire
