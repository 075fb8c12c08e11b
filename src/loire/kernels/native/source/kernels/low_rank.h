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

constexpr int UP_TOKENS = PARTS == 1 ? 4 : 1;  // together: as many chains as there are registers

// What is added to a panel for some tokens. hidden: of each, from the panel's first rank on.
template <int TOKENS, typename Element>
INLINE void low_rank_up(const Element* up, int64_t count, const float* const* hidden,
                        Vec16* const* added) {
    static_assert(PANEL == 32, "a panel is two vectors");
    Vec16 chains[TOKENS][2][2], halves[2];
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t)
        for (int i = 0; i < 2; ++i) chains[t][i][0] = chains[t][i][1] = zero();
    const auto link = [&](int64_t j, int i) __attribute__((always_inline)) {
        load_panel(up + j * PANEL, halves);
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; ++t) {
            const Vec16 factor = broadcast(hidden[t][j]);
            chains[t][i][0] = fma(factor, halves[0], chains[t][i][0]);
            chains[t][i][1] = fma(factor, halves[1], chains[t][i][1]);
        }
    };
    int64_t j = 0;
    for (; j + 2 <= count; j += 2) link(j, 0), link(j + 1, 1);
    if (j < count) link(j, 0);
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t)
        for (int half = 0; half < 2; ++half)
            added[t][half] = chains[t][0][half] + chains[t][1][half];
}

// What adapters add to some panels of some tokens, [tokens][panels][2 vectors].
struct AddedPanels {
    static constexpr int64_t MOST_TOKENS = 32;

    Vec16 sums[MOST_TOKENS][2 * PANEL / 16];
    bool has[MOST_TOKENS];  // any

    template <typename Element>
    INLINE void add(const AdaptedTokens& all, int64_t panel, int64_t panels, int64_t first,
                    int64_t count) {
        __builtin_memset(has, 0, sizeof(has));
        for (int64_t g = 0; g < all.num_groups; ++g) {
            const AdapterGroup& group = all.groups[g];
            fetch_panels<Element>(all, g + 1, panel, panels);
            int64_t begin = 0;
            if (group.tokens[0] < first) begin = place_of(group, first);
            int64_t end = begin;
            while (end < group.count && group.tokens[end] < first + count)
                has[group.tokens[end++] - first] = true;
            for (int64_t i = 0; i < panels; ++i)
                for (int64_t t = begin; t < end; t += UP_TOKENS)
                    for_count<UP_TOKENS>(end - t < UP_TOKENS ? end - t : UP_TOKENS, [&](auto tokens) {
                        add_some<tokens.value, Element>(all, group, t, panel, i, first);
                    });
        }
    }

  private:
    template <int TOKENS, typename Element>
    INLINE void add_some(const AdaptedTokens& all, const AdapterGroup& group, int64_t t,
                         int64_t panel, int64_t i, int64_t first) {
        const PanelRanks& ranks = group.adapter->panels[panel + i];
        const float* hidden[TOKENS];
        Vec16* added[TOKENS];
        for (int k = 0; k < TOKENS; ++k) {
            const int64_t token = group.tokens[t + k];
            hidden[k] = all.hidden + token * all.hidden_stride + ranks.first;
            added[k] = sums[token - first] + i * PANEL / 16;
        }
        low_rank_up<TOKENS>(static_cast<const Element*>(group.adapter->up) + ranks.start,
                            int64_t(ranks.last) - ranks.first, hidden, added);
    }

    // The first of a group's tokens from `first` on.
    static INLINE int64_t place_of(const AdapterGroup& group, int64_t first) {
        int64_t low = 0, high = group.count;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (group.tokens[middle] < first) low = middle + 1;
            else high = middle;
        }
        return low;
    }

    // What the next group has of these panels: its parts are too short for the processor to see a
    // stream.
    template <typename Element>
    static INLINE void fetch_panels(const AdaptedTokens& all, int64_t g, int64_t panel,
                                    int64_t panels) {
        if (g >= all.num_groups) g = 0, panel += panels;
        const Adapter& adapter = *all.groups[g].adapter;
        if (panel >= adapter.num_panels) return;
        const PanelRanks &from = adapter.panels[panel], &to = adapter.panels[panel + panels - 1];
        const int64_t end = to.start + (to.last - to.first) * PANEL;
        const auto* up = static_cast<const Element*>(adapter.up);
        for (int64_t at = from.start; at < end; at += int64_t(64 / sizeof(Element)))
            __builtin_prefetch(up + at, 0, 3);
    }
};

constexpr int DOWN_CHAINS = PARTS == 1 ? 16 : 4;  // as many as there are registers for
constexpr int DOWN_TOKENS = PARTS == 1 ? 4 : 2;

// Adds the products of some inputs to each rank's chains, the ranks `stride` elements apart, and fetches
// what lies as many ranks ahead.
template <typename Element>
struct Links {
    static constexpr int64_t INPUTS = 16;

    template <int TOKENS, int RANKS>
    static INLINE void add(const Element* const (&x)[TOKENS], int64_t k, const Element* down,
                           int64_t stride, Vec16 (&chains)[TOKENS][RANKS]) {
        Vec16 inputs[TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; ++t) inputs[t] = load(x[t] + k);
#pragma GCC unroll 8
        for (int i = 0; i < RANKS; ++i) {
            const Vec16 weights = load(down + i * stride);
            __builtin_prefetch(down + (i + RANKS) * stride, 0, 3);
#pragma GCC unroll 4
            for (int t = 0; t < TOKENS; ++t) chains[t][i] = fma(inputs[t], weights, chains[t][i]);
        }
    }
};

#if defined(LOIRE_AVX512_BF16)
template <>
struct Links<bfloat16> {
    static constexpr int64_t INPUTS = 32;

    template <int TOKENS, int RANKS>
    static INLINE void add(const bfloat16* const (&x)[TOKENS], int64_t k, const bfloat16* down,
                           int64_t stride, Vec16 (&chains)[TOKENS][RANKS]) {
        __m512bh inputs[TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; ++t) inputs[t] = (__m512bh)_mm512_loadu_si512(x[t] + k);
#pragma GCC unroll 8
        for (int i = 0; i < RANKS; ++i) {
            const auto weights = (__m512bh)_mm512_loadu_si512(down + i * stride);
            __builtin_prefetch(down + (i + RANKS) * stride, 0, 3);
#pragma GCC unroll 4
            for (int t = 0; t < TOKENS; ++t)
                chains[t][i].part[0] = _mm512_dpbf16_ps(chains[t][i].part[0], inputs[t], weights);
        }
    }
};
#endif

// Some ranks of some tokens.
template <int TOKENS, int RANKS, typename Element>
INLINE void low_rank_down(const Element* const (&x)[TOKENS], const Element* down, int64_t size,
                          float* const (&hidden)[TOKENS], int64_t rank) {
    constexpr int64_t INPUTS = Links<Element>::INPUTS;
    Vec16 chains[TOKENS][RANKS];
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
        for (int i = 0; i < RANKS; ++i) chains[t][i] = zero();
    int64_t k = 0;
    for (; k + INPUTS <= size; k += INPUTS) Links<Element>::add(x, k, down + k, size, chains);
    if (k < size) {
        Element inputs[TOKENS][INPUTS] = {}, weights[2 * RANKS * INPUTS] = {};
        const Element* last[TOKENS];
        for (int t = 0; t < TOKENS; ++t) {
            __builtin_memcpy(inputs[t], x[t] + k, size_t(size - k) * sizeof(Element));
            last[t] = inputs[t];
        }
        for (int i = 0; i < RANKS; ++i)
            __builtin_memcpy(weights + i * INPUTS, down + i * size + k,
                             size_t(size - k) * sizeof(Element));
        Links<Element>::add(last, 0, weights, INPUTS, chains);
    }
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
        for (int i = 0; i < RANKS; ++i) hidden[t][rank + i] = sum(chains[t][i]);
}

// All ranks of a piece for some of its tokens.
template <int TOKENS, typename Element>
INLINE void low_rank_tokens(const LowRankArguments& a, const LowRankPiece& piece,
                            const AdapterGroup& group, int64_t first) {
    constexpr int RANKS = DOWN_CHAINS / TOKENS < 8 ? DOWN_CHAINS / TOKENS : 8;
    const Element* x[TOKENS];
    float* hidden[TOKENS];
    for (int t = 0; t < TOKENS; ++t) {
        const int64_t token = group.tokens[first + t];
        x[t] = reinterpret_cast<const Element*>(
            a.x + (a.rows == nullptr ? token : a.rows[token]) * a.x_stride);
        hidden[t] = a.adapted.hidden + token * a.adapted.hidden_stride;
    }
    const auto* down = static_cast<const Element*>(group.adapter->down);
    int64_t rank = piece.first_rank;
    for (; rank + RANKS <= piece.last_rank; rank += RANKS)
        low_rank_down<TOKENS, RANKS>(x, down + rank * a.in_features, a.in_features, hidden, rank);
    for (; rank < piece.last_rank; ++rank)
        low_rank_down<TOKENS, 1>(x, down + rank * a.in_features, a.in_features, hidden, rank);
}

template <typename Element>
void low_rank_piece(const void* untyped, int64_t index, Scratch&) {
    const auto& a = *static_cast<const LowRankArguments*>(untyped);
    const LowRankPiece& piece = a.pieces[index];
    const AdapterGroup& group = a.adapted.groups[piece.group];
    for (int64_t t = piece.first_token; t < piece.last_token; t += DOWN_TOKENS) {
        const int64_t left = piece.last_token - t;
        for_count<DOWN_TOKENS>(left < DOWN_TOKENS ? left : DOWN_TOKENS, [&](auto tokens) {
            low_rank_tokens<tokens.value, Element>(a, piece, group, t);
        });
    }
}

}  // namespace
}  // namespace loire
