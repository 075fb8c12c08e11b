// What the machine can do at best: reading memory, and multiplying in registers.

#pragma once

#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

// Sums PIECE_BYTES of memory.
void read_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const LimitArguments*>(untyped);
    const auto* source = reinterpret_cast<const float*>(a.memory + piece * LIMIT_PIECE_BYTES);
    Vec16 sums[4] = {zero(), zero(), zero(), zero()};
    for (int64_t i = 0; i < LIMIT_PIECE_BYTES / 4; i += 64)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            __builtin_prefetch(source + i + 16 * j + 1024);
            sums[j] = sums[j] + load(source + i + 16 * j);
        }
    a.results[piece] = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// LIMIT_ROUNDS rounds of LIMIT_CHAINS independent chains that end in one sum.
constexpr int LIMIT_CHAINS = PARTS == 1 ? 12 : PARTS == 2 ? 6 : 3;
#if defined(LOIRE_AVX512_BF16)
constexpr int BFLOAT16_LINKS = 2;  // of a chain, per instruction
#else
constexpr int BFLOAT16_LINKS = 1;
#endif

template <typename Link>
INLINE float run_chains(Link link) {
    Vec16 chains[LIMIT_CHAINS];
    for (Vec16& chain : chains) chain = zero();
    for (int64_t round = 0; round < LIMIT_ROUNDS; ++round)
#pragma GCC unroll 12
        for (int i = 0; i < LIMIT_CHAINS; ++i) chains[i] = link(chains[i]);
    Vec16 total = zero();
    for (const Vec16& chain : chains) total = total + chain;
    return sum(total);
}

void multiply_float32_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const LimitArguments*>(untyped);
    const Vec16 x = load(reinterpret_cast<const float*>(a.memory));
    a.results[piece] = run_chains([&](const Vec16& chain) { return fma(x, x, chain); });
}

void multiply_bfloat16_piece(const void* untyped, int64_t piece, Scratch& scratch) {
#if defined(LOIRE_AVX512_BF16)
    (void)scratch;
    const auto& a = *static_cast<const LimitArguments*>(untyped);
    const auto x = (__m512bh)_mm512_loadu_si512(a.memory);
    a.results[piece] = run_chains([&](const Vec16& chain) {
        return Vec16{{_mm512_dpbf16_ps(chain.part[0], x, x)}};
    });
#else
    multiply_float32_piece(untyped, piece, scratch);
#endif
}

}  // namespace
}  // namespace loire
