#include "adapters.h"

#include <algorithm>
#include <cstring>

namespace loire {

namespace {

float number_at(const void* source, bool is_bfloat16, int64_t index) {
    if (!is_bfloat16) return static_cast<const float*>(source)[index];
    const uint32_t bits = uint32_t(static_cast<const bfloat16*>(source)[index].bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

}  // namespace

Adapters::Adapters(bool is_bfloat16, Gate gate, int64_t out_features, int64_t in_features,
                   int64_t panels)
    : is_bfloat16_(is_bfloat16),
      gate_(gate),
      out_features_(out_features),
      in_features_(in_features),
      panels_(panels) {}

void Adapters::set(int64_t number, const std::vector<LowRankPart>& parts) {
    Kept kept;
    for (const LowRankPart& part : parts) kept.rank += part.rank;
    const int64_t row_bytes = in_features_ * (is_bfloat16_ ? 2 : 4);
    kept.down.resize(size_t(kept.rank * row_bytes));
    kept.up.resize(size_t(panels_ * kept.rank * PANEL));
    kept.ranks.resize(size_t(2 * panels_));
    int64_t rank = 0;
    for (const LowRankPart& part : parts) {
        std::memcpy(kept.down.data() + rank * row_bytes, part.down, size_t(part.rank * row_bytes));
        put_up(part, rank, kept);
        rank += part.rank;
    }
    if (size_t(number) >= kept_.size()) kept_.resize(size_t(number) + 1);
    kept_[size_t(number)] = std::move(kept);
    adapters_.assign(kept_.size(), {});
    most_rank_ = 0;
    for (size_t i = 0; i < kept_.size(); ++i) {
        const Kept& one = kept_[i];
        adapters_[i] = {one.down.data(), one.up.data(), one.ranks.data(), one.rank};
        most_rank_ = std::max(most_rank_, one.rank);
    }
}

void Adapters::put_up(const LowRankPart& part, int64_t first_rank, Kept& kept) const {
    for (int64_t row = 0; row < panels_ * PANEL; ++row) {
        const int64_t output = source_row(row, gate_, out_features_) - part.first;
        if (source_row(row, gate_, out_features_) < 0 || output < 0 || output >= part.outputs)
            continue;
        const int64_t panel = row / PANEL;
        float* up = kept.up.data() + (panel * kept.rank + first_rank) * PANEL + row % PANEL;
        for (int64_t j = 0; j < part.rank; ++j)
            up[j * PANEL] = number_at(part.up, is_bfloat16_, output * part.rank + j);
        int32_t* ranks = kept.ranks.data() + 2 * panel;
        if (ranks[1] == 0) ranks[0] = int32_t(first_rank);
        ranks[1] = int32_t(first_rank + part.rank);
    }
}

AdaptedTokens Adapters::tokens(const int32_t* numbers) const {
    AdaptedTokens tokens;
    tokens.numbers = numbers;
    tokens.adapters = adapters_.data();
    tokens.num_adapters = int64_t(adapters_.size());
    tokens.hidden_stride = most_rank_;
    return tokens;
}

}  // namespace loire
