// Products with blocks whose scale is a float, of inputs in float32.

#include "block_operations.h"
#include "parts.h"

namespace loire {

constexpr BlockOperations LOIRE_PART(float_blocks_float32) = float_block_operations<float>();

}  // namespace loire
