// What adapters add to one weight, in the panels of that weight.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../kernels/operations.h"

namespace loire {

// up (down x) for outputs of the weight, counted before a gate, from `first` on.
struct LowRankPart {
    const void* down;  // [rank, in]
    const void* up;    // [outputs, rank], both of x's type
    int64_t rank, first, outputs;
};

// All of an adapter's parts for one weight.
struct PackedAdapter {
    std::vector<char> down, up;
    std::vector<PanelRanks> panels;
    int64_t rank = 0;

    int64_t bytes() const {
        return int64_t(down.size() + up.size() + panels.size() * sizeof(PanelRanks));
    }
};

class Adapters {
  public:
    Adapters(bool is_bfloat16, Gate gate, int64_t out_features, int64_t in_features,
             int64_t panels);

    // Keeps nothing of what it is given. Products may go on meanwhile.
    std::unique_ptr<PackedAdapter> pack(const std::vector<LowRankPart>& parts) const;

    // Replaces what adapter `number` adds; null: nothing. It must stay for as long as it is set.
    void set(int64_t number, const PackedAdapter* packed);

    // For a product with so many of its tokens' numbers.
    AdaptedTokens tokens(const int32_t* numbers) const;
    bool empty() const { return most_rank_ == 0; }
    int64_t most_rank() const { return most_rank_; }

  private:
    // Which output of a part a row of the packed weight is; -1 for none of it.
    int64_t output_of(const LowRankPart& part, int64_t row) const;
    void put_up(const LowRankPart& part, int64_t first_rank, PackedAdapter& packed) const;

    const bool is_bfloat16_;
    const Gate gate_;
    const int64_t out_features_, in_features_, panels_;
    std::vector<Adapter> adapters_;
    int64_t most_rank_ = 0;
};

}  // namespace loire
