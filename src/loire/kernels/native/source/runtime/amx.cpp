#include "amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cerrno>
#include <cstring>

#if defined(LOIRE_HAS_AMX)
#include "self_test.h"
#endif

namespace loire {

namespace {

#if defined(LOIRE_EMULATE_AMX)

Amx hardware() { return {AmxState::WORKS, ""}; }

#elif defined(__x86_64__) && defined(__linux__)

// Intel's manual, volume 1, chapters 13 and 18: bits of CPUID and of XCR0.
bool processor_has_amx() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned BFLOAT16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25;
    return (d & BFLOAT16) && (d & TILE) && (d & INT8);
}

bool system_keeps_tiles() {
    unsigned a, b, c, d;
    constexpr unsigned OSXSAVE = 1u << 27, TILE_STATE = 3u << 17;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return false;
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & TILE_STATE) == TILE_STATE;
}

// Linux gives the room for tiles only to processes that ask (Documentation/arch/x86/xstate.rst).
// Returns an error number.
int request_permission() {
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 ? 0 : errno;
}

Amx hardware() {
    if (!processor_has_amx()) return {AmxState::ABSENT, ""};
    if (!system_keeps_tiles())
        return {AmxState::ABSENT, "the operating system does not provide it"};
    if (const int error = request_permission()) {
        const char* why = error == ENOSPC ? "a thread has a signal stack too small for its state"
                                          : std::strerror(error);
        return {AmxState::ABSENT, std::string("the operating system does not permit it: ") + why};
    }
    return {AmxState::WORKS, ""};
}

#else

Amx hardware() { return {AmxState::ABSENT, ""}; }

#endif

Amx find() {
    const Amx found = hardware();
    if (found.state != AmxState::WORKS) return found;
#if defined(LOIRE_HAS_AMX)
    const std::string fault = self_test(amx);
    if (fault.empty()) return found;
    return {AmxState::UNPROVEN, "the self-test of the kernels failed: " + fault};
#else
    return {AmxState::UNPROVEN, "the compiler that Loire was installed with does not know AMX"};
#endif
}

}  // namespace

const Amx& find_amx() {
    static const Amx found = find();
    return found;
}

}  // namespace loire
