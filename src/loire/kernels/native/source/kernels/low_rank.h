// What adapters add to products (Hu et al. 2021, "LoRA"): up (down x), with down x in float32.
//
// The order of additions: for each rank sixteen chains over the inputs, input k in chain k % 16 (pairs of
// inputs, pair k / 2 in chain k / 2 % 16, where bfloat16 is multiplied in pairs), brought together two by
// two; then for each output two chains over the ranks that its panel has, the i-th of them in chain i % 2.
// So a token has the same bits whatever the others are, and one without an adapter those of the product
// alone.

#pragma once

#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

// A token's adapter, or null, and down x.
struct AdaptedToken {
    const Adapter* adapter;
    const float* hidden;
};

INLINE AdaptedToken adapted_token(const AdaptedTokens& all, int64_t token) {
    if (all.numbers == nullptr) return {nullptr, nullptr};
    return {all.of(token), all.hidden + token * all.hidden_stride};
}

// One rank's part of a panel: outputs 0 to 15, and 16 to 31.
INLINE void load_panel(const float* up, Vec16 (&halves)[2]) {
    halves[0] = load(up);
    halves[1] = load(up + 16);
}

INLINE void load_panel(const bfloat16* up, Vec16 (&halves)[2]) {
    EACH_PART {
        Words pairs;
        __builtin_memcpy(&pairs, up + 2 * p * LANES, sizeof(pairs));
        halves[0].part[p] = (Floats)(pairs << 16);
        halves[1].part[p] = (Floats)(pairs & 0xffff0000u);
    }
}

// What is added to a panel.
template <typename Element>
INLINE void low_rank_up(const AdaptedToken& token, int64_t panel, Vec16 (&added)[2]) {
    static_assert(PANEL == 32, "a panel is two vectors");
    const PanelRanks& ranks = token.adapter->panels[panel];
    const auto* up = static_cast<const Element*>(token.adapter->up) + ranks.start;
    const float* hidden = token.hidden + ranks.first;
    const int64_t count = ranks.last - ranks.first;
    Vec16 chains[2][2] = {{zero(), zero()}, {zero(), zero()}}, halves[2];
    int64_t j = 0;
    for (; j + 2 <= count; j += 2)
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            load_panel(up + (j + i) * PANEL, halves);
            const Vec16 factor = broadcast(hidden[j + i]);
            chains[i][0] = fma(factor, halves[0], chains[i][0]);
            chains[i][1] = fma(factor, halves[1], chains[i][1]);
        }
    if (j < count) {
        load_panel(up + j * PANEL, halves);
        const Vec16 factor = broadcast(hidden[j]);
        chains[0][0] = fma(factor, halves[0], chains[0][0]);
        chains[0][1] = fma(factor, halves[1], chains[0][1]);
    }
    added[0] = chains[0][0] + chains[1][0];
    added[1] = chains[0][1] + chains[1][1];
}

// Adds the products of some inputs to each rank's chains.
template <typename Element>
struct Links {
    static constexpr int64_t INPUTS = 16;

    template <int COUNT>
    static INLINE void add(const Element* x, const Element* down, int64_t stride,
                           Vec16 (&chains)[COUNT]) {
        const Vec16 inputs = load(x);
#pragma GCC unroll 8
        for (int i = 0; i < COUNT; ++i)
            chains[i] = fma(inputs, load(down + i * stride), chains[i]);
    }
};

#if defined(LOIRE_AVX512_BF16)
template <>
struct Links<bfloat16> {
    static constexpr int64_t INPUTS = 32;

    template <int COUNT>
    static INLINE void add(const bfloat16* x, const bfloat16* down, int64_t stride,
                           Vec16 (&chains)[COUNT]) {
        const auto inputs = (__m512bh)_mm512_loadu_si512(x);
#pragma GCC unroll 8
        for (int i = 0; i < COUNT; ++i)
            chains[i].part[0] =
                _mm512_dpbf16_ps(chains[i].part[0], inputs,
                                 (__m512bh)_mm512_loadu_si512(down + i * stride));
    }
};
#endif

// Some ranks of one token, COUNT together.
template <int COUNT, typename Element>
INLINE void low_rank_down(const Element* x, const Element* down, int64_t size, float* hidden) {
    constexpr int64_t INPUTS = Links<Element>::INPUTS;
    Vec16 chains[COUNT];
    for (Vec16& chain : chains) chain = zero();
    int64_t k = 0;
    for (; k + INPUTS <= size; k += INPUTS) Links<Element>::add(x + k, down + k, size, chains);
    if (k < size) {
        Element inputs[INPUTS] = {}, weights[COUNT * INPUTS] = {};
        __builtin_memcpy(inputs, x + k, size_t(size - k) * sizeof(Element));
        for (int i = 0; i < COUNT; ++i)
            __builtin_memcpy(weights + i * INPUTS, down + i * size + k,
                             size_t(size - k) * sizeof(Element));
        Links<Element>::add(inputs, weights, INPUTS, chains);
    }
    for (int i = 0; i < COUNT; ++i) hidden[i] = sum(chains[i]);
}

// One token.
template <typename Element>
void low_rank_piece(const void* untyped, int64_t t, Scratch&) {
    const auto& a = *static_cast<const LowRankArguments*>(untyped);
    const Adapter* adapter = a.adapted.of(t);
    if (adapter == nullptr) return;
    const auto* x = static_cast<const Element*>(a.x) + t * a.in_features;
    const auto* down = static_cast<const Element*>(adapter->down);
    float* hidden = a.adapted.hidden + t * a.adapted.hidden_stride;
    int64_t j = 0;
    for (; j + 8 <= adapter->rank; j += 8)
        low_rank_down<8>(x, down + j * a.in_features, a.in_features, hidden + j);
    for (; j < adapter->rank; ++j)
        low_rank_down<1>(x, down + j * a.in_features, a.in_features, hidden + j);
}

}  // namespace
}  // namespace loire
