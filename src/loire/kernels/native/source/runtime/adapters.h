// What adapters add to one weight, in the panels of that weight.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../kernels/operations.h"
#include "memory.h"

namespace loire {

// up (down x) for outputs of the weight, counted before a gate, from `first` on.
struct LowRankPart {
    const void* down;  // [rank, in]
    const void* up;    // [outputs, rank], both of x's type
    int64_t rank, first, outputs;
};

// All of an adapter's parts for one weight.
struct PackedAdapter {
    Memory memory;  // `down`, then `up`, in whole lines
    int64_t down_bytes = 0, up_bytes = 0;
    std::vector<PanelRanks> panels;
    int64_t rank = 0;

    char* down() const { return memory.get(); }
    char* up() const { return memory.get() + down_bytes; }
    int64_t bytes() const {
        return down_bytes + up_bytes + int64_t(panels.size() * sizeof(PanelRanks));
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

    bool empty() const { return most_rank_ == 0; }

  private:
    friend class AdaptedProduct;

    // Which output of a part a row of the packed weight is; -1 for none of it.
    int64_t output_of(const LowRankPart& part, int64_t row) const;
    void put_down(const LowRankPart& part, int64_t first_rank, PackedAdapter& packed) const;
    void put_up(const LowRankPart& part, int64_t first_rank, PackedAdapter& packed) const;

    const bool is_bfloat16_;
    const Gate gate_;
    const int64_t out_features_, in_features_, panels_;
    std::vector<Adapter> adapters_;
    int64_t most_rank_ = 0;
};

// What adapters add to a product of some tokens, in pieces.
class AdaptedProduct {
  public:
    // numbers: [tokens] of each token's adapter, -1 for none; null where no token has one.
    AdaptedProduct(const Adapters& adapters, const int32_t* numbers, int64_t tokens);

    // Of down x, which come before the product; none where nothing is added.
    int64_t pieces() const { return int64_t(pieces_.size()); }
    // That down x takes.
    size_t hidden_bytes() const;
    // For the product; this must stay as long.
    AdaptedTokens tokens(float* hidden) const;
    LowRankArguments arguments(float* hidden, const char* x, int64_t x_stride,
                               const int64_t* rows) const;

  private:
    void cut();

    const int64_t in_features_, hidden_stride_;
    std::vector<int32_t> tokens_;  // by adapter
    std::vector<AdapterGroup> groups_;
    std::vector<LowRankPiece> pieces_;
    int64_t num_tokens_, ranks_ = 0;
};

}  // namespace loire
