// Which instruction sets this processor has that the kernels were compiled for.

#pragma once

#include <string>

#include "../kernels/table.h"

namespace loire {

// The names of those that can be used here, best first, separated by commas.
const std::string& instruction_set_names();

// The operations of one of them. Throws std::invalid_argument if it cannot be used here.
const Operations& operations_of(const std::string& instruction_set);

}  // namespace loire
