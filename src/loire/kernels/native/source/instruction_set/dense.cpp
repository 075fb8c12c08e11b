// Products with numbers as they are.

#include "../kernels/pack.h"
#include "linear_operations.h"
#include "parts.h"
#if defined(LOIRE_AMX)
#include "../kernels/linear_amx.h"
#endif

namespace loire {

constexpr LinearOperations LOIRE_PART(dense_float32) =
    linear_operations<Float32Format>(pack_dense_piece<float>, pack_activations_piece<Float32Format>);

#if defined(LOIRE_AMX)
constexpr LinearOperations LOIRE_PART(dense_bfloat16) = {
    pack_dense_piece<bfloat16, false>, pack_tiles_piece,     linear_tiles_piece,
    low_rank_piece<bfloat16>,          0,                    STEP,
    PANEL * STEP * 2,                  TOKEN_STEP_BYTES,     tile_tokens,
    4,                                 nullptr};
#else
constexpr LinearOperations LOIRE_PART(dense_bfloat16) = linear_operations<BFloat16Format>(
    pack_dense_piece<bfloat16>, pack_activations_piece<BFloat16Format>);
#endif

}  // namespace loire
