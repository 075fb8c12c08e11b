// Runs kernels where they can do no harm.

#pragma once

#include <string>

#include "../kernels/table.h"

namespace loire {

// Multiplies by random bfloat16 weights with these operations and with the portable ones, on several
// threads of a child process, for shapes of all kinds. Returns what was wrong: a crash of whatever
// kind, a bit that differs, no result within a second; or nothing.
std::string self_test(const Operations& operations);

}  // namespace loire
