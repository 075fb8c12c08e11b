// Products with weights that were rounded to codes.

#include "../kernels/pack.h"
#include "parts.h"
#include "quantized_operations.h"

namespace loire {

constexpr LinearOperations LOIRE_PART(int8_float32) =
    quantized_operations<float, 8, Scales::PER_OUTPUT>(pack_int8_piece<float>);
constexpr LinearOperations LOIRE_PART(int8_bfloat16) =
    quantized_operations<bfloat16, 8, Scales::PER_OUTPUT>(pack_int8_piece<bfloat16>);
constexpr LinearOperations LOIRE_PART(int4_float32) =
    quantized_operations<float, 4, Scales::PER_STEP>(pack_int4_piece<float>);
constexpr LinearOperations LOIRE_PART(int4_bfloat16) =
    quantized_operations<bfloat16, 4, Scales::PER_STEP>(pack_int4_piece<bfloat16>);

}  // namespace loire
