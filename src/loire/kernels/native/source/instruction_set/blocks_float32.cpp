// Products with blocks of 32 elements, of inputs in float32.

#include "block_operations.h"
#include "parts.h"

namespace loire {
namespace {

constexpr BlockOperations operations() {
    BlockOperations result = block_operations<float>();
    set_blocks<float, Q4_1>(result, BlockFormat::Q4_1);
    return result;
}

}  // namespace

constexpr BlockOperations LOIRE_PART(blocks_float32) = operations();

}  // namespace loire
