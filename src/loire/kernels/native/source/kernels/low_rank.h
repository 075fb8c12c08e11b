// What adapters add to products (Hu et al. 2021, "LoRA"): up (down x), with down x in float32.
//
// The order of additions: for each rank sixteen chains over the inputs, input k in chain k % 16, brought
// together two by two; then for each output four chains over the ranks that its panel has, the i-th of
// them in chain i % 4, brought together two by two. So a token has the same bits whatever the others are,
// and one without an adapter those of the product alone.

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

// What is added to sixteen outputs from a row of the packed weight on.
template <typename Element>
INLINE Vec16 low_rank_up(const AdaptedToken& token, int64_t row) {
    const PanelRanks& ranks = token.adapter->panels[row / PANEL];
    const auto* up = static_cast<const Element*>(token.adapter->up) + ranks.start + row % PANEL;
    const float* hidden = token.hidden + ranks.first;
    const int64_t count = ranks.last - ranks.first;
    Vec16 totals[4] = {zero(), zero(), zero(), zero()};
    int64_t j = 0;
    for (; j + 4 <= count; j += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            totals[i] = fma(broadcast(hidden[j + i]), load(up + (j + i) * PANEL), totals[i]);
#pragma GCC unroll 4
    for (int i = 0; i < 3; ++i)
        if (j + i < count)
            totals[i] = fma(broadcast(hidden[j + i]), load(up + (j + i) * PANEL), totals[i]);
    return (totals[0] + totals[1]) + (totals[2] + totals[3]);
}

// Some ranks of one token, COUNT together.
template <int COUNT, typename Element>
INLINE void low_rank_down(const Element* x, const Element* down, int64_t size, float* hidden) {
    Vec16 chains[COUNT];
    for (Vec16& chain : chains) chain = zero();
    for (int64_t k = 0; k < size; k += 16) {
        const Vec16 inputs = load_some(x + k, size - k);
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; ++i)
            chains[i] = fma(inputs, load_some(down + i * size + k, size - k), chains[i]);
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
    for (; j + 4 <= adapter->rank; j += 4)
        low_rank_down<4>(x, down + j * a.in_features, a.in_features, hidden + j);
    for (; j < adapter->rank; ++j)
        low_rank_down<1>(x, down + j * a.in_features, a.in_features, hidden + j);
}

}  // namespace
}  // namespace loire
