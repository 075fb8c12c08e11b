// What adapters add to products (Hu et al. 2021, "LoRA"): up (down x), with down x in float32.
//
// The order of additions: for each rank sixteen chains over the inputs, input k in chain k % 16, brought
// together two by two; then for each output one chain over the ranks in their order. So a token has
// the same bits whatever the others are, and one without an adapter those of the product alone.

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
INLINE Vec16 low_rank_up(const AdaptedToken& token, int64_t row) {
    const Adapter& adapter = *token.adapter;
    const int64_t panel = row / PANEL;
    const float* up = adapter.up + panel * adapter.rank * PANEL + row % PANEL;
    Vec16 total = zero();
    for (int64_t j = adapter.ranks[2 * panel]; j < adapter.ranks[2 * panel + 1]; ++j)
        total = fma(broadcast(token.hidden[j]), load(up + j * PANEL), total);
    return total;
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

// ROWS_PER_PIECE tokens.
template <typename Element>
void low_rank_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const LowRankArguments*>(untyped);
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const Adapter* adapter = a.adapted.of(t);
        if (adapter == nullptr) continue;
        const auto* x = static_cast<const Element*>(a.x) + t * a.in_features;
        const auto* down = static_cast<const Element*>(adapter->down);
        float* hidden = a.adapted.hidden + t * a.adapted.hidden_stride;
        int64_t j = 0;
        for (; j + 4 <= adapter->rank; j += 4)
            low_rank_down<4>(x, down + j * a.in_features, a.in_features, hidden + j);
        for (; j < adapter->rank; ++j)
            low_rank_down<1>(x, down + j * a.in_features, a.in_features, hidden + j);
    }
}

}  // namespace
}  // namespace loire
