// A weight in panels, in the layout that an instruction set reads.

#pragma once

#include <cstdint>

#include "pool.h"

namespace loire {

enum class WeightFormat : int32_t { DENSE = 0, INT8 = 8, INT4 = 4 };

class PackedWeight {
  public:
    // weight [out, in] with rows of row_stride elements, bias [out] or null, both of one type.
    // format: DENSE keeps the numbers, the others round them as linear_quantized.h says.
    PackedWeight(Pool& pool, const void* weight, const void* bias, bool is_bfloat16,
                 WeightFormat format, int64_t out_features, int64_t in_features,
                 int64_t row_stride, Layout layout);
    ~PackedWeight();
    PackedWeight(const PackedWeight&) = delete;
    PackedWeight& operator=(const PackedWeight&) = delete;

    const bool is_bfloat16;  // x is
    const WeightFormat format;
    const int64_t out_features, in_features;
    const int64_t panel, panels, steps, panel_bytes;  // panel: its outputs
    char* data = nullptr;
    float* scales = nullptr;  // [panels * panel], of int8
    float* bias = nullptr;    // [panels * panel]
};

}  // namespace loire
