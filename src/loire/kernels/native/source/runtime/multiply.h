// x times a packed weight: how the work is cut into pieces.

#pragma once

#include <cstdint>

#include "../kernels/operations.h"
#include "packed_weight.h"
#include "pool.h"

namespace loire {

// out [tokens, out] = x [tokens, in] * weight, rows of out lying out_stride elements apart. x is of the
// type that the weight was packed from, out too unless wide: float32 then. operations: those the weight was packed for. activations: room for
// packing. forecast: of the weights that the pool's threads fetch ahead.
//
// numbers: [tokens] of each token's adapter, -1 for none; null where no token has one. hidden: room for
// what adapters work out, where there are numbers.
void multiply(const LinearOperations& operations, Pool& pool, Scratch& activations,
              Forecast& forecast, const PackedWeight& weight, const void* x, void* out,
              int64_t out_stride, bool wide, int64_t tokens, const int32_t* numbers = nullptr,
              Scratch* hidden = nullptr);

}  // namespace loire
