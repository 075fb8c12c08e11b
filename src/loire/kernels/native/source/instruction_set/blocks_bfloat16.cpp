// Products with blocks of 32 elements, of inputs in bfloat16.

#include "block_operations.h"
#include "parts.h"
#include "../kernels/pack.h"
#include "quantized_operations.h"

namespace loire {
namespace {

constexpr BlockOperations operations() {
    BlockOperations result = block_operations<bfloat16>();
    // (Its halves lie as in Q4_1 of packed_blocks.h, and AMX's tiles know this one.)
    LinearOperations& q4_1 = result.formats[int(BlockFormat::Q4_1)];
    q4_1 = quantized_operations<bfloat16, 4, Scales::AND_MINIMUM>(pack_q4_1_piece);
    q4_1.embed = embed_blocks_piece<bfloat16, Q4_1>;
    return result;
}

}  // namespace

constexpr BlockOperations LOIRE_PART(blocks_bfloat16) = operations();

}  // namespace loire
