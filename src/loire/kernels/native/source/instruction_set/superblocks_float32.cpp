// Products with blocks of 256 elements, of inputs in float32.

#include "block_operations.h"
#include "parts.h"

namespace loire {

constexpr BlockOperations LOIRE_PART(superblocks_float32) = superblock_operations<float>();

}  // namespace loire
