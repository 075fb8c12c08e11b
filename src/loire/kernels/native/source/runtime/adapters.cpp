#include "adapters.h"

#include <algorithm>
#include <cstring>

namespace loire {

namespace {

// Of down x: few enough that threads end at the same time, tokens that stay in the L1 cache meanwhile.
constexpr int32_t TOKENS_PER_PIECE = 16, RANKS_PER_PIECE = 32;

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
    const int64_t size = is_bfloat16_ ? 2 : 4;
    packed->panels.resize(size_t(panels_));
    for (const LowRankPart& part : parts) {
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
    packed->down_bytes = packed->rank * down_row(in_features_, size) * size;
    packed->up_bytes = elements * size;
    packed->memory = allocate(size_t(packed->down_bytes + packed->up_bytes));
    std::memset(packed->memory.get(), 0, size_t(packed->down_bytes + packed->up_bytes));
    int64_t first_rank = 0;
    for (const LowRankPart& part : parts) {
        put_down(part, first_rank, *packed);
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
        adapter = {packed->down(), packed->up(), packed->panels.data(), packed->rank,
                   panels_};
    most_rank_ = 0;
    for (const Adapter& one : adapters_) most_rank_ = std::max(most_rank_, one.rank);
}

int64_t Adapters::output_of(const LowRankPart& part, int64_t row) const {
    const int64_t source = source_row(row, gate_, out_features_), output = source - part.first;
    return source < 0 || output < 0 || output >= part.outputs ? -1 : output;
}

void Adapters::put_down(const LowRankPart& part, int64_t first_rank, PackedAdapter& packed) const {
    const int64_t size = is_bfloat16_ ? 2 : 4, line = down_line(size);
    const int64_t row_bytes = down_row(in_features_, size) * size;
    for (int64_t j = 0; j < part.rank; ++j) {
        const int64_t rank = first_rank + j, place = rank % DOWN_RANKS, block = rank - place;
        const int64_t width = std::min(packed.rank - block, DOWN_RANKS);
        const char* source = static_cast<const char*>(part.down) + j * in_features_ * size;
        char* target = packed.down() + block * row_bytes + place * 64;
        for (int64_t k = 0; k < in_features_; k += line, target += width * 64)
            std::memcpy(target, source + k * size, size_t(std::min(line, in_features_ - k) * size));
    }
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
            std::memcpy(packed.up() + (at + j * PANEL) * size,
                        source + (output * part.rank + j) * size, size_t(size));
    }
}

AdaptedProduct::AdaptedProduct(const Adapters& adapters, const int32_t* numbers, int64_t tokens)
    : in_features_(adapters.in_features_), hidden_stride_(adapters.most_rank_), num_tokens_(tokens) {
    if (numbers == nullptr || adapters.empty()) return;
    const std::vector<Adapter>& all = adapters.adapters_;
    const auto has = [&](int32_t number) {
        return number >= 0 && size_t(number) < all.size() && all[size_t(number)].rank > 0;
    };
    std::vector<int32_t> next(all.size() + 1, 0);  // where the tokens of each adapter begin
    for (int64_t t = 0; t < tokens; ++t)
        if (has(numbers[t])) ++next[size_t(numbers[t]) + 1];
    for (size_t number = 0; number < all.size(); ++number) next[number + 1] += next[number];
    tokens_.resize(size_t(next.back()));
    for (size_t number = 0; number < all.size(); ++number)
        if (next[number + 1] > next[number])
            groups_.push_back({&all[number], tokens_.data() + next[number],
                               next[number + 1] - next[number]});
    for (int64_t t = 0; t < tokens; ++t)
        if (has(numbers[t])) tokens_[size_t(next[size_t(numbers[t])]++)] = int32_t(t);
    cut();
}

void AdaptedProduct::cut() {
    for (size_t group = 0; group < groups_.size(); ++group) {
        ranks_ += groups_[group].adapter->rank;
        const int32_t rank = int32_t(groups_[group].adapter->rank);
        const int32_t count = int32_t(groups_[group].count);
        for (int32_t token = 0; token < count; token += TOKENS_PER_PIECE)
            for (int32_t first = 0; first < rank; first += RANKS_PER_PIECE)
                pieces_.push_back({int32_t(group), token, std::min(token + TOKENS_PER_PIECE, count),
                                   first, std::min(first + RANKS_PER_PIECE, rank)});
    }
}

size_t AdaptedProduct::hidden_bytes() const {
    return groups_.empty() ? 0 : size_t(num_tokens_ * hidden_stride_) * sizeof(float);
}

AdaptedTokens AdaptedProduct::tokens(float* hidden) const {
    return {groups_.data(), int64_t(groups_.size()), ranks_, hidden, hidden_stride_};
}

LowRankArguments AdaptedProduct::arguments(float* hidden, const char* x, int64_t x_stride,
                                           const int64_t* rows) const {
    return {tokens(hidden), pieces_.data(), pieces(), x, x_stride, rows, in_features_};
}

}  // namespace loire
