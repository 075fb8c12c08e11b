// The activations of gated products (Shazeer 2020); the clamped one is that of gpt-oss.

#pragma once

#include "operations.h"
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

// The smaller; b where either is NaN.
INLINE Vec16 minimum(const Vec16& a, const Vec16& b) {
    return zero() - maximum(zero() - a, zero() - b);
}

INLINE Vec16 clamped_swiglu(const Clamp& clamp, const Vec16& first, const Vec16& second) {
    const Vec16 limit = broadcast(clamp.limit);
    const Vec16 gate = minimum(limit, first);
    const Vec16 other = minimum(limit, maximum(zero() - limit, second));
    return (other + broadcast(1.0f)) * (gate * sigmoid(gate * broadcast(clamp.alpha)));
}

INLINE Vec16 squared_relu(const Vec16& x) {
    const Vec16 positive = maximum(zero(), x);  // NaN stays NaN
    return positive * positive;
}

// Of both halves of a product.
INLINE Vec16 gated(Gate gate, const Clamp& clamp, const Vec16& first, const Vec16& second) {
    switch (gate) {
        case Gate::SILU: return first * sigmoid(first) * second;
        case Gate::GELU_TANH: return gelu_tanh(first) * second;
        case Gate::CLAMPED_SWIGLU: return clamped_swiglu(clamp, first, second);
        default: return gelu(first) * second;
    }
}

}  // namespace
}  // namespace loire
