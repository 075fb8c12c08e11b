#include "instruction_sets.h"

#include <stdexcept>
#include <vector>

#include "amx.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace loire {

extern const Operations portable;
#if defined(__x86_64__)
extern const Operations avx2;
extern const Operations avx512;
extern const Operations avx512_bf16;
#elif defined(__aarch64__)
extern const Operations neon;
extern const Operations neon_dotprod;
#endif

namespace {

#if defined(__aarch64__)
// Whether the processor has SDOT. Where nobody says so it is not used.
bool has_dot_product() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return false;
#endif
}
#endif

// Those that can be used here, best first.
std::vector<const Operations*> find_instruction_sets() {
    std::vector<const Operations*> found;
#if defined(LOIRE_EMULATE_AMX)
    if (find_amx().state == AmxState::WORKS) found.push_back(&amx);
#elif defined(__x86_64__)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("f16c");
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (has_avx512 && __builtin_cpu_supports("avx512bf16") &&
        __builtin_cpu_supports("avx512vnni") && avx512_bf16.computes_exactly()) {
#if defined(LOIRE_HAS_AMX)
        if (find_amx().state == AmxState::WORKS) found.push_back(&amx);
#endif
        found.push_back(&avx512_bf16);
    }
    if (has_avx512) found.push_back(&avx512);
    if (has_avx2) found.push_back(&avx2);
#elif defined(__aarch64__)
    if (has_dot_product()) found.push_back(&neon_dotprod);
    found.push_back(&neon);
#endif
    found.push_back(&portable);
    return found;
}

const std::vector<const Operations*>& instruction_sets() {
    static const std::vector<const Operations*> found = find_instruction_sets();
    return found;
}

std::string join_names() {
    std::string joined;
    for (const Operations* operations : instruction_sets())
        joined += (joined.empty() ? "" : ",") + std::string(operations->name);
    return joined;
}

}  // namespace

const std::string& instruction_set_names() {
    static const std::string joined = join_names();
    return joined;
}

const Operations& operations_of(const std::string& instruction_set) {
    for (const Operations* operations : instruction_sets())
        if (operations->name == instruction_set) return *operations;
    throw std::invalid_argument("this processor has no " + instruction_set + "; it has " +
                                instruction_set_names());
}

}  // namespace loire
