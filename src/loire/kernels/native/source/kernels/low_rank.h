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

// Fetches what adapters have of some panels, bit by bit while the product with those panels is worked
// out: that keeps the processor busy and leaves memory idle.
class FetchedPanels {
  public:
    // times: that go_on() is going to be called, about.
    FetchedPanels(const AdaptedTokens& all, int64_t panel, int64_t panels, int64_t element_bytes,
                  int64_t times)
        : all_(all),
          panel_(panel),
          panels_(panels),
          element_bytes_(element_bytes),
          bytes_((all.ranks * panels * PANEL * element_bytes + times - 1) / times) {}

    // A part of them.
    INLINE void go_on() {
        if (group_ < all_.num_groups || next_ < end_) fetch(bytes_);
    }

    // What is left of them.
    void rest() { fetch(INT64_MAX); }

  private:
    void fetch(int64_t bytes) {
        for (; bytes > 0; bytes -= 64, next_ += 64) {
            while (next_ >= end_) {
                if (group_ == all_.num_groups) return;
                begin(*all_.groups[group_++].adapter);
            }
            __builtin_prefetch(next_, 0, 3);
        }
    }

    void begin(const Adapter& adapter) {
        const PanelRanks &from = adapter.panels[panel_], &to = adapter.panels[panel_ + panels_ - 1];
        __builtin_prefetch(&to + 8, 0, 3);
        const auto* up = static_cast<const char*>(adapter.up);
        next_ = up + from.start * element_bytes_;
        end_ = up + (to.start + (to.last - to.first) * PANEL) * element_bytes_;
    }

    const AdaptedTokens& all_;
    const int64_t panel_, panels_, element_bytes_, bytes_;
    int64_t group_ = 0;
    const char *next_ = nullptr, *end_ = nullptr;
};

constexpr int UP_RANKS = 8;  // together: most adapters' ranks are multiples of it
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
    for (; j + UP_RANKS <= count; j += UP_RANKS)
#pragma GCC unroll 8
        for (int i = 0; i < UP_RANKS; ++i) link(j + i, i % 2);
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
};

constexpr int DOWN_CHAINS = PARTS == 1 ? 16 : 4;  // as many as there are registers for
constexpr int DOWN_TOKENS = PARTS == 1 ? 4 : 2;

// Adds the products of some inputs to each rank's chains, the ranks a line apart.
template <typename Element>
struct Links {
    static constexpr int64_t INPUTS = 16;

    template <int TOKENS, int RANKS>
    static INLINE void add(const Element* const (&x)[TOKENS], int64_t k, const Element* down,
                           Vec16 (&chains)[TOKENS][RANKS]) {
        Vec16 inputs[TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; ++t) inputs[t] = load(x[t] + k);
#pragma GCC unroll 8
        for (int i = 0; i < RANKS; ++i) {
            const Vec16 weights = load(down + i * down_line(sizeof(Element)));
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
                           Vec16 (&chains)[TOKENS][RANKS]) {
        __m512bh inputs[TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; ++t) inputs[t] = (__m512bh)_mm512_loadu_si512(x[t] + k);
#pragma GCC unroll 8
        for (int i = 0; i < RANKS; ++i) {
            const auto weights =
                (__m512bh)_mm512_loadu_si512(down + i * down_line(sizeof(bfloat16)));
#pragma GCC unroll 4
            for (int t = 0; t < TOKENS; ++t)
                chains[t][i].part[0] = _mm512_dpbf16_ps(chains[t][i].part[0], inputs[t], weights);
        }
    }
};
#endif

// What is read of an adapter, and what is read after that.
template <typename Element>
struct DownStream {
    static constexpr int64_t AHEAD = 4096 / sizeof(Element);

    const Element *end, *next;

    // Lines that come some time after those at `here`.
    template <int LINES>
    INLINE void fetch(const Element* here) const {
        const Element* ahead = here + AHEAD;
        if (ahead >= end) ahead += next - end;
#pragma GCC unroll 8
        for (int i = 0; i < LINES; ++i)
            __builtin_prefetch(ahead + i * down_line(sizeof(Element)), 0, 3);
    }
};

// Some ranks of some tokens. down: of the first of them; `width` ranks lie together.
template <int TOKENS, int RANKS, typename Element>
INLINE void low_rank_down(const Element* const (&x)[TOKENS], const Element* down, int64_t width,
                          const DownStream<Element>& stream, int64_t size,
                          float* const (&hidden)[TOKENS], int64_t rank) {
    constexpr int64_t LINE = down_line(sizeof(Element));
    Vec16 chains[TOKENS][RANKS];
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
        for (int i = 0; i < RANKS; ++i) chains[t][i] = zero();
    const auto add_line = [&](const Element* const (&inputs)[TOKENS], int64_t k)
                              __attribute__((always_inline)) {
        stream.template fetch<RANKS>(down);
#pragma GCC unroll 2
        for (int64_t i = 0; i < LINE; i += Links<Element>::INPUTS)
            Links<Element>::add(inputs, k + i, down + i, chains);
        down += width * LINE;
    };
    int64_t k = 0;
    for (; k + LINE <= size; k += LINE) add_line(x, k);
    if (k < size) {
        Element inputs[TOKENS][LINE] = {};
        const Element* last[TOKENS];
        for (int t = 0; t < TOKENS; ++t) {
            __builtin_memcpy(inputs[t], x[t] + k, size_t(size - k) * sizeof(Element));
            last[t] = inputs[t];
        }
        add_line(last, 0);
    }
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; ++t) sum_each(chains[t], hidden[t] + rank);
}

// All ranks of a piece for some of its tokens.
template <int TOKENS, typename Element>
INLINE void low_rank_tokens(const LowRankArguments& a, const LowRankPiece& piece,
                            const DownStream<Element>& stream, int64_t first) {
    constexpr int RANKS = TOKENS * 8 <= DOWN_CHAINS ? 8 : TOKENS * 4 <= DOWN_CHAINS ? 4 : 2;
    const AdapterGroup& group = a.adapted.groups[piece.group];
    const Element* x[TOKENS];
    float* hidden[TOKENS];
    for (int t = 0; t < TOKENS; ++t) {
        const int64_t token = group.tokens[first + t];
        x[t] = reinterpret_cast<const Element*>(
            a.x + (a.rows == nullptr ? token : a.rows[token]) * a.x_stride);
        hidden[t] = a.adapted.hidden + token * a.adapted.hidden_stride;
    }
    const int64_t row = down_row(a.in_features, sizeof(Element));
    const auto* down = static_cast<const Element*>(group.adapter->down);
    for (int64_t rank = piece.first_rank; rank < piece.last_rank; rank += DOWN_RANKS) {
        const int64_t left = piece.last_rank - rank, width = left < DOWN_RANKS ? left : DOWN_RANKS;
        const Element* block = down + rank * row;
        int64_t i = 0;
        for (; i + RANKS <= width; i += RANKS)
            low_rank_down<TOKENS, RANKS>(x, block + i * down_line(sizeof(Element)), width, stream,
                                         a.in_features, hidden, rank + i);
        for (; i < width; ++i)
            low_rank_down<TOKENS, 1>(x, block + i * down_line(sizeof(Element)), width, stream,
                                     a.in_features, hidden, rank + i);
    }
}

// Where a piece's ranks begin, or the ranks behind its last.
template <typename Element>
INLINE const Element* down_at(const LowRankArguments& a, int32_t group, int64_t rank) {
    const auto* down = static_cast<const Element*>(a.adapted.groups[group].adapter->down);
    return down + rank * down_row(a.in_features, sizeof(Element));
}

template <typename Element>
void low_rank_piece(const void* untyped, int64_t index, Scratch&) {
    const auto& a = *static_cast<const LowRankArguments*>(untyped);
    const LowRankPiece& piece = a.pieces[index];
    const LowRankPiece& next = index + 1 < a.num_pieces ? a.pieces[index + 1] : piece;
    const DownStream<Element> stream{down_at<Element>(a, piece.group, piece.last_rank),
                                     down_at<Element>(a, next.group, next.first_rank)};
    for (int64_t t = piece.first_token; t < piece.last_token; t += DOWN_TOKENS) {
        const int64_t left = piece.last_token - t;
        for_count<DOWN_TOKENS>(left < DOWN_TOKENS ? left : DOWN_TOKENS, [&](auto tokens) {
            low_rank_tokens<tokens.value, Element>(a, piece, stream, t);
        });
    }
}

}  // namespace
}  // namespace loire
