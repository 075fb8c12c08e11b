// Several products whose pieces are handed out together.

#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/table.h"
#include "packed_weight.h"
#include "pool.h"

namespace loire {

// out = x * weight, of rows of one type that may lie apart.
struct GroupedProduct {
    const PackedWeight* weight;
    const LinearOperations* operations;  // those it was packed for
    const char* x;
    int64_t x_stride;       // bytes from row to row
    const int64_t* rows;    // [count]: which rows of x; null: one after another
    int64_t count;
    char* out;
    int64_t out_stride;     // elements from row to row
    const int32_t* numbers = nullptr;  // [count] of each row's adapter, -1 for none; null: no row has one
    bool wide = false;      // whether out is float32
};

// activations: room for packing. hidden: for what adapters work out.
void multiply_together(Pool& pool, Scratch& activations, Scratch& hidden,
                       const std::vector<GroupedProduct>& products);

}  // namespace loire
