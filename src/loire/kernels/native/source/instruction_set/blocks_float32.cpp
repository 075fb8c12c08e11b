// Products with blocks of 32 elements, of inputs in float32.

#include "block_operations.h"
#include "parts.h"

namespace loire {

constexpr BlockOperations LOIRE_PART(blocks_float32) = block_operations<float>();

}  // namespace loire
