// What adapters add to one weight, in the panels of that weight.

#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/operations.h"

namespace loire {

// up (down x) for outputs of the weight, counted before a gate, from `first` on.
struct LowRankPart {
    const void* down;  // [rank, in]
    const void* up;    // [outputs, rank], both of x's type
    int64_t rank, first, outputs;
};

class Adapters {
  public:
    Adapters(bool is_bfloat16, Gate gate, int64_t out_features, int64_t in_features,
             int64_t panels);

    // Replaces what adapter `number` adds; no parts: nothing. Keeps nothing of what it is given.
    void set(int64_t number, const std::vector<LowRankPart>& parts);

    // For a product with so many of its tokens' numbers.
    AdaptedTokens tokens(const int32_t* numbers) const;
    bool empty() const { return most_rank_ == 0; }
    int64_t most_rank() const { return most_rank_; }

  private:
    struct Kept {
        std::vector<char> down;
        std::vector<float> up;
        std::vector<int32_t> ranks;
        int64_t rank = 0;
    };
    void put_up(const LowRankPart& part, int64_t first_rank, Kept& kept) const;

    const bool is_bfloat16_;
    const Gate gate_;
    const int64_t out_features_, in_features_, panels_;
    std::vector<Kept> kept_;
    std::vector<Adapter> adapters_;  // of kept_
    int64_t most_rank_ = 0;
};

}  // namespace loire
