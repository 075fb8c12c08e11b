// The activations of gated products (Shazeer 2020).

#pragma once

#include "vec16.h"

namespace loire {
namespace {

INLINE Vec16 sigmoid(const Vec16& x) {
    const Vec16 one = broadcast(1.0f);
    return one / (one + exponential(zero() - x));
}

// 0.5 x (1 + tanh(u)) = x sigmoid(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3).
INLINE Vec16 gelu_tanh(const Vec16& x) {
    const Vec16 inner = x * fma(x * x, broadcast(0.044715f), broadcast(1.0f));
    return x * sigmoid(inner * broadcast(1.5957691216057308f));
}

INLINE Vec16 gelu(const Vec16& x) {
    float lanes[16];
    store(lanes, x);
    for (float& lane : lanes) lane *= 0.5f * (1.0f + __builtin_erff(lane * 0.70710678118654752f));
    return load(lanes);
}

INLINE Vec16 activated(Gate gate, const Vec16& x) {
    return gate == Gate::SILU ? x * sigmoid(x) : gate == Gate::GELU_TANH ? gelu_tanh(x) : gelu(x);
}

}  // namespace
}  // namespace loire
