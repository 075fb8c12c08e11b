// What a way of rounding needs, put together.

#pragma once

#include "../kernels/linear_quantized.h"
#include "linear_operations.h"
#if defined(LOIRE_AMX)
#include "../kernels/linear_quantized_amx.h"
#endif

namespace loire {
namespace {

template <typename Element, int BITS, Scales SCALES>
constexpr LinearOperations quantized_operations(PieceFunction pack) {
    using Format = QuantizedFormat<Element, BITS, SCALES>;
    LinearOperations result = linear_operations<Format>(pack, quantize_activations_piece<Format>);
#if defined(LOIRE_AMX)
    result.linear = quantized_tiles_piece<Format>;
    result.tokens_per_block = quantized_tile_tokens<Format::MOST_ROWS>;
#endif
    return result;
}

}  // namespace
}  // namespace loire
