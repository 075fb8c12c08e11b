// What the steps of a piece of attention know and hand on to each other, and how they fetch what they
// need next.

#pragma once

#include "attention_keys.h"
#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

#if defined(LOIRE_AVX512)
constexpr int ROWS_TOGETHER = 8, VECTORS_TOGETHER = 4;
#elif defined(LOIRE_AVX2)
constexpr int ROWS_TOGETHER = 2, VECTORS_TOGETHER = 2;
#else
constexpr int ROWS_TOGETHER = 1, VECTORS_TOGETHER = 2;
#endif
constexpr int TILES_TOGETHER = PARTS == 1 ? 2 : 1;  // of 16 transposed keys
constexpr int64_t KEYS_TOGETHER = 16 * TILES_TOGETHER;
constexpr int64_t KEYS_AHEAD = 2 * KEYS_TOGETHER;   // fetched while others are scored,
constexpr int64_t LINES_PER_WORD = TILES_TOGETHER;  // so many lines per word of those
constexpr int64_t VALUES_AHEAD = 32;                // fetched while others are weighed
// From one row's scores to the next one's: rows are a line apart, so that they do not meet in a few sets
// of the L1 cache.
constexpr int64_t SCORES = SPLIT + 16;

// Maxima, sums and weighted values of some rows; values are [rows][stride].
struct Partial {
    float* values;
    float* maxima;
    float* sums;
};

// What all steps of one piece know. Kept is what the cache keeps: Element, or codes with scales.
template <typename GivenElement, typename GivenKept>
struct Piece {
    using Element = GivenElement;
    using Kept = GivenKept;
    static constexpr bool SCALED = sizeof(Kept) == 1;

    const AttentionArguments& a;
    const AttentionPiece& piece;
    bool whole;                   // whether all tokens see all keys of the split
    int64_t group, rows, stride;  // query heads per kv head; rows; head_dim in whole vectors
    typename ScoresOf<Element>::Type::Query* queries;
    int64_t* positions;  // [rows]
    float* scores;       // [rows][SCORES]
    float* highest;      // [rows][16], of scores in the split: of those whose keys share a lane
    float* tiles;        // KEYS_TOGETHER keys, transposed: 16 by 16 of them word by word
    Element* widened;  // of codes: 16 keys, then SPLIT values, [stride] each
    // Where the keys and values of a split lie; nothing is set at first.
    struct Located {
        Located() {}
        const Kept* keys[SPLIT];
        const Kept* kept_values[SPLIT];
        const Element* values[SPLIT];  // the same, widened if they are codes
        float key_scales[SPLIT];       // of codes
        float value_scales[SPLIT];
    } at;

    int64_t position(int64_t row) const { return positions[row]; }
    int64_t first_seen(int64_t position) const {
        return position < a.window ? 0 : position - a.window + 1;
    }
};

// Lines of vectors that are needed soon, fetched a few at a time while others are computed: blocks
// are too short, and lie anywhere, so that the processor's own prefetching falls behind, and many
// fetches at once would hold up what follows them.
template <typename Kept>
class Fetching {
  public:
    Fetching(const Kept* const* vectors, int64_t count, int64_t head_dim)
        : next_(vectors), end_(vectors + count), head_dim_(head_dim) {}

    INLINE void lines(int64_t count) {
        for (; count > 0 && next_ < end_; --count) {
            __builtin_prefetch(*next_ + dimension_);
            dimension_ += 64 / int64_t(sizeof(Kept));
            if (dimension_ >= head_dim_) dimension_ = 0, ++next_;
        }
    }

    void rest() {
        while (next_ < end_) lines(1);
    }

  private:
    const Kept* const* next_;
    const Kept* const* end_;
    int64_t head_dim_;
    int64_t dimension_ = 0;
};

// Rows [row, row + ROWS) see keys [first, last) of the split, together.
struct Seen {
    int64_t first, last;

    template <typename Piece>
    Seen(const Piece& piece, int64_t row, int64_t rows, int64_t base)
        : first(piece.first_seen(piece.position(row)) - base),
          last(piece.position(row + rows - 1) + 1 - base) {
        if (piece.whole || first < 0) first = 0;
        if (piece.whole || last > SPLIT) last = SPLIT;
    }
};

}  // namespace
}  // namespace loire
