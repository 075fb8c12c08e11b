// Products with blocks whose scale is a float, of inputs in bfloat16.

#include "block_operations.h"
#include "parts.h"

namespace loire {

constexpr BlockOperations LOIRE_PART(float_blocks_bfloat16) = float_block_operations<bfloat16>();

}  // namespace loire
