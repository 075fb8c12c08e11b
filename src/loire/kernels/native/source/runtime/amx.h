// Whether the kernels with AMX can be used in this process.

#pragma once

#include <string>

#include "../kernels/table.h"

namespace loire {

#if defined(LOIRE_HAS_AMX)
extern const Operations amx;
#endif

enum class AmxState {
    ABSENT,    // no AMX for bfloat16 and bytes in this processor, or none that this process may use
    WORKS,
    UNPROVEN,  // there is AMX, and other libraries can use it; the kernels here cannot
};

struct Amx {
    AmxState state;
    std::string why;  // a processor with AMX is not made use of; else empty
};

// Asks the processor, then the system for permission for all threads of this process and for its
// children, then tries the kernels in a child process. The first call takes some milliseconds where
// there is AMX. With the permission the system takes no stack for signals (sigaltstack) any more
// that is smaller than AT_MINSIGSTKSZ.
const Amx& find_amx();

}  // namespace loire
