// Products with blocks of 256 elements, of inputs in bfloat16.

#include "block_operations.h"
#include "parts.h"

namespace loire {

constexpr BlockOperations LOIRE_PART(superblocks_bfloat16) = superblock_operations<bfloat16>();

}  // namespace loire
