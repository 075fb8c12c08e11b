// A weight in panels, in the layout that an instruction set reads. DENSE keeps the numbers, the other
// formats round them as linear_quantized.h says.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "adapters.h"
#include "memory.h"
#include "pool.h"

namespace loire {

// FIRST_BLOCKS plus a BlockFormat takes rows of blocks instead of numbers, and strides in bytes.
enum class WeightFormat : int32_t { DENSE = 0, INT8 = 8, INT4 = 4, FIRST_BLOCKS = 100 };

class PackedWeight {
  public:
    // parts (at most MOST_PARTS) of the weight and bias [out] (or null), all of one type.
    // operations: those of the format, which multiply with it later. gate: none, or what is applied to
    // the products with the first half of its rows. out_features: of the result. order: [in], which
    // input of x each input of a row is; empty: they are in order.
    PackedWeight(Pool& pool, WeightMemory& memory, const LinearOperations& operations,
                 const std::vector<WeightPart>& parts, const void* bias, bool is_bfloat16,
                 WeightFormat format, Gate gate, Clamp clamp, int64_t out_features,
                 int64_t in_features, std::vector<int32_t> order = {});
    PackedWeight(const PackedWeight&) = delete;
    PackedWeight& operator=(const PackedWeight&) = delete;

    const bool is_bfloat16;  // x is
    const WeightFormat format;
    const Gate gate;
    const Clamp clamp;  // of that gate
    const int64_t out_features, in_features;
    const std::vector<int32_t> order;
    const int64_t panels, steps, panel_bytes;
    char* data = nullptr;
    float* scales = nullptr;  // [panels * PANEL], of int8
    float* bias = nullptr;    // [panels * PANEL], as the rows are packed
    Adapters adapters;

  private:
    std::shared_ptr<char> memory_;
};

}  // namespace loire
