// Products with blocks of 32 elements, of inputs in bfloat16.

#include "block_operations.h"
#include "parts.h"

namespace loire {

constexpr BlockOperations LOIRE_PART(blocks_bfloat16) = block_operations<bfloat16>();

}  // namespace loire
