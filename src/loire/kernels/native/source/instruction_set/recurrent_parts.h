// The part of mixers with a state: see parts.h.

#pragma once

#include "../kernels/recurrent_operations.h"
#include "parts.h"

namespace loire {

extern const RecurrentOperations LOIRE_PART(recurrent_float32), LOIRE_PART(recurrent_bfloat16);

}  // namespace loire
