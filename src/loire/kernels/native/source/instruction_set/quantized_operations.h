// What rounding to 8 bits needs, put together.

#pragma once

#include "../kernels/linear_quantized.h"
#include "../kernels/pack.h"
#include "linear_operations.h"
#if defined(LOIRE_AMX)
#include "../kernels/linear_quantized_amx.h"
#endif

namespace loire {
namespace {

template <typename Element>
constexpr LinearOperations int8_operations() {
    using Format = QuantizedFormat<Element>;
    LinearOperations result =
        linear_operations<Format>(pack_int8_piece<Element>, round_activations_piece<Format>);
#if defined(LOIRE_AMX)
    result.linear = quantized_tiles_piece<Format>;
    result.tokens_per_block = quantized_tile_tokens<Format::MOST_ROWS>;
#endif
    return result;
}

}  // namespace
}  // namespace loire
