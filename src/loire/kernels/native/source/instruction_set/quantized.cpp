// Products with weights that were rounded to codes.

#include "../kernels/pack.h"
#include "block_operations.h"
#include "parts.h"
#include "quantized_operations.h"

namespace loire {

constexpr LinearOperations LOIRE_PART(int8_float32) = int8_operations<float>();
constexpr LinearOperations LOIRE_PART(int8_bfloat16) = int8_operations<bfloat16>();
constexpr LinearOperations LOIRE_PART(int4_float32) =
    rounded_operations<float, Int4>(pack_int4_piece<float>);
constexpr LinearOperations LOIRE_PART(int4_bfloat16) =
    rounded_operations<bfloat16, Int4>(pack_int4_piece<bfloat16>);

}  // namespace loire
