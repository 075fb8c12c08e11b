// Gated activations: activation(first half) * second half (Shazeer 2020).

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

template <typename Element>
void activation_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const ActivationArguments*>(untyped);
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const Element* gate = static_cast<const Element*>(a.gate_up) + t * 2 * a.size;
        const Element* up = gate + a.size;
        Element* out = static_cast<Element*>(a.out) + t * a.size;
        for (int64_t i = 0; i < a.size; i += 16) {
            const Vec16 x = load_some(gate + i, a.size - i);
            const Vec16 activated = a.kind == 0   ? x * sigmoid(x)
                                    : a.kind == 1 ? gelu_tanh(x)
                                                  : gelu(x);
            store_some(out + i, activated * load_some(up + i, a.size - i), a.size - i);
        }
    }
}
