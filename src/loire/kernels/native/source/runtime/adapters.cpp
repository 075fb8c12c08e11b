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

std::unique_ptr<PackedAdapter> Adapters::pack(const std::vector<LowRankPart>& parts) const {
    auto packed = std::make_unique<PackedAdapter>();
    for (const LowRankPart& part : parts) packed->rank += part.rank;
    const int64_t row_bytes = in_features_ * (is_bfloat16_ ? 2 : 4);
    packed->down.resize(size_t(packed->rank * row_bytes));
    packed->up.resize(size_t(panels_ * packed->rank * PANEL));
    packed->ranks.resize(size_t(2 * panels_));
    int64_t rank = 0;
    for (const LowRankPart& part : parts) {
        std::memcpy(packed->down.data() + rank * row_bytes, part.down,
                    size_t(part.rank * row_bytes));
        put_up(part, rank, *packed);
        rank += part.rank;
    }
    return packed;
}

void Adapters::set(int64_t number, const PackedAdapter* packed) {
    if (size_t(number) >= adapters_.size()) adapters_.resize(size_t(number) + 1);
    Adapter& adapter = adapters_[size_t(number)];
    adapter = {};
    if (packed != nullptr)
        adapter = {packed->down.data(), packed->up.data(), packed->ranks.data(), packed->rank};
    most_rank_ = 0;
    for (const Adapter& one : adapters_) most_rank_ = std::max(most_rank_, one.rank);
}

void Adapters::put_up(const LowRankPart& part, int64_t first_rank, PackedAdapter& packed) const {
    for (int64_t row = 0; row < panels_ * PANEL; ++row) {
        const int64_t output = source_row(row, gate_, out_features_) - part.first;
        if (source_row(row, gate_, out_features_) < 0 || output < 0 || output >= part.outputs)
            continue;
        const int64_t panel = row / PANEL;
        float* up = packed.up.data() + (panel * packed.rank + first_rank) * PANEL + row % PANEL;
        for (int64_t j = 0; j < part.rank; ++j)
            up[j * PANEL] = number_at(part.up, is_bfloat16_, output * part.rank + j);
        int32_t* ranks = packed.ranks.data() + 2 * panel;
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
