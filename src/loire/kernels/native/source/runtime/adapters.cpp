#include "adapters.h"

#include <algorithm>
#include <cstring>

namespace loire {

Adapters::Adapters(bool is_bfloat16, Gate gate, int64_t out_features, int64_t in_features,
                   int64_t panels)
    : is_bfloat16_(is_bfloat16),
      gate_(gate),
      out_features_(out_features),
      in_features_(in_features),
      panels_(panels) {}

std::unique_ptr<PackedAdapter> Adapters::pack(const std::vector<LowRankPart>& parts) const {
    auto packed = std::make_unique<PackedAdapter>();
    const int64_t size = is_bfloat16_ ? 2 : 4, row_bytes = in_features_ * size;
    packed->panels.resize(size_t(panels_));
    for (const LowRankPart& part : parts) {
        packed->down.resize(size_t((packed->rank + part.rank) * row_bytes));
        std::memcpy(packed->down.data() + packed->rank * row_bytes, part.down,
                    size_t(part.rank * row_bytes));
        for (int64_t row = 0; row < panels_ * PANEL; ++row) {
            if (output_of(part, row) < 0) continue;
            PanelRanks& ranks = packed->panels[size_t(row / PANEL)];
            if (ranks.last == 0) ranks.first = int32_t(packed->rank);
            ranks.last = int32_t(packed->rank + part.rank);
        }
        packed->rank += part.rank;
    }
    int64_t elements = 0;
    for (PanelRanks& ranks : packed->panels) {
        ranks.start = elements;
        elements += (ranks.last - ranks.first) * PANEL;
    }
    packed->up.resize(size_t(elements * size));
    int64_t first_rank = 0;
    for (const LowRankPart& part : parts) {
        put_up(part, first_rank, *packed);
        first_rank += part.rank;
    }
    return packed;
}

void Adapters::set(int64_t number, const PackedAdapter* packed) {
    if (size_t(number) >= adapters_.size()) adapters_.resize(size_t(number) + 1);
    Adapter& adapter = adapters_[size_t(number)];
    adapter = {};
    if (packed != nullptr)
        adapter = {packed->down.data(), packed->up.data(), packed->panels.data(), packed->rank};
    most_rank_ = 0;
    for (const Adapter& one : adapters_) most_rank_ = std::max(most_rank_, one.rank);
}

int64_t Adapters::output_of(const LowRankPart& part, int64_t row) const {
    const int64_t source = source_row(row, gate_, out_features_), output = source - part.first;
    return source < 0 || output < 0 || output >= part.outputs ? -1 : output;
}

void Adapters::put_up(const LowRankPart& part, int64_t first_rank, PackedAdapter& packed) const {
    const int64_t size = is_bfloat16_ ? 2 : 4;
    const char* source = static_cast<const char*>(part.up);
    for (int64_t row = 0; row < panels_ * PANEL; ++row) {
        const int64_t output = output_of(part, row);
        if (output < 0) continue;
        const PanelRanks& ranks = packed.panels[size_t(row / PANEL)];
        const int64_t at = ranks.start + (first_rank - ranks.first) * PANEL +
                           panel_column(row % PANEL, is_bfloat16_);
        for (int64_t j = 0; j < part.rank; ++j)
            std::memcpy(packed.up.data() + (at + j * PANEL) * size,
                        source + (output * part.rank + j) * size, size_t(size));
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
