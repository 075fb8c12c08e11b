#include "attention_plan.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>

#include "shared_splits.h"

namespace loire {

namespace {
constexpr int64_t ROWS_PER_BLOCK = 128;  // query heads times tokens that share transposed keys
constexpr int64_t LEAST_SHARED_ROWS = 32, MOST_SHARED_ROWS = 128;  // the same, of several sequences
constexpr int64_t PIECES_PER_THREAD = 6;
constexpr int64_t SIZES = 8;  // of pieces that are told apart when they are put in order

// Work is counted in keys: reading one costs about as much as multiplying it with some rows.
int64_t work(int64_t rows, int64_t keys) { return keys * (8 + rows); }

// The pieces of one shape, while they are collected.
class Collector {
  public:
    Collector(int64_t heads, int64_t kv_heads, int64_t window)
        : made_{heads, kv_heads, window, {}, {}, {}, {}, {}} {}

    int32_t add_merge(int64_t first_split, int64_t splits, int64_t rows) {
        made_.merges.push_back({made_.partials, int32_t(first_split), int32_t(splits)});
        made_.splits.push_back(int32_t(splits));
        made_.partials += splits;
        made_.partial_rows = std::max(made_.partial_rows, rows);
        return int32_t(made_.merges.size()) - 1;
    }

    size_t next_merge() const { return made_.merges.size(); }

    void begin(int64_t row, int64_t kv_head, int64_t split, int64_t cost) {
        made_.pieces.push_back(
            {int32_t(row), int32_t(kv_head), int32_t(split), int32_t(made_.members.size()), 0});
        costs_.push_back(cost);
    }

    void add_member(const AttentionQueries& queries, int32_t merge) {
        made_.members.push_back({queries, merge});
        made_.pieces.back().members += 1;
    }

    // The largest first; among those of about one size the same head together: they read the same
    // keys if their rows share a prefix.
    AttentionPieces take() {
        made_.unfinished = made_.splits;
        std::vector<size_t> order(costs_.size());
        std::iota(order.begin(), order.end(), 0);
        const int64_t highest =
            costs_.empty() ? 1 : *std::max_element(costs_.begin(), costs_.end()) + 1;
        const auto rank = [&](size_t i) {
            return std::make_tuple(-(costs_[i] * SIZES / highest), made_.pieces[i].kv_head,
                                   made_.pieces[i].split);
        };
        std::stable_sort(order.begin(), order.end(),
                         [&](size_t a, size_t b) { return rank(a) < rank(b); });
        std::vector<AttentionPiece> sorted;
        sorted.reserve(order.size());
        for (const size_t index : order) sorted.push_back(made_.pieces[index]);
        made_.pieces = std::move(sorted);
        return std::move(made_);
    }

  private:
    AttentionPieces made_;
    std::vector<int64_t> costs_;
};
}  // namespace

AttentionPlan::AttentionPlan(const int32_t* query_starts, const int32_t* context_lens,
                             const int32_t* tables, int64_t rows, int64_t table_size,
                             int64_t block_size, int num_threads)
    : block_tables(tables),
      table_size(table_size),
      block_size(block_size),
      query_starts_(query_starts),
      context_lens_(context_lens),
      rows_(rows),
      num_threads_(num_threads) {
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t queries = int64_t(query_starts[row + 1]) - query_starts[row];
        const int64_t context = context_lens[row];
        const bool has_room = block_size == 0 || context <= table_size * block_size;
        if (queries < 0 || context < queries || !has_room)
            throw std::invalid_argument(
                "row " + std::to_string(row) + " has " + std::to_string(queries) +
                " queries and a context of " + std::to_string(context) +
                " tokens, but its block table holds " + std::to_string(table_size * block_size));
        const int32_t* table = tables + row * table_size;
        for (int64_t i = 0; block_size > 0 && i * block_size < context; ++i) {
            lowest_block = std::min(lowest_block, table[i]);
            highest_block = std::max(highest_block, table[i]);
        }
    }
    tokens = rows > 0 ? query_starts[rows] : 0;
}

AttentionPieces& AttentionPlan::pieces(int64_t heads, int64_t kv_heads, int64_t window) {
    for (AttentionPieces& made : made_)
        if (made.heads == heads && made.kv_heads == kv_heads && made.window == window) return made;
    made_.push_back(cut(heads, kv_heads, window));
    return made_.back();
}

// The tokens of a row in even blocks.
std::vector<AttentionQueries> AttentionPlan::blocks(int64_t row, int64_t group) const {
    const int64_t queries = query_starts_[row + 1] - query_starts_[row];
    const int64_t start = context_lens_[row] - queries;
    const int64_t most = std::max<int64_t>(1, ROWS_PER_BLOCK / group);
    const int64_t count = (queries + most - 1) / most;
    std::vector<AttentionQueries> result;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t first = queries * i / count, last = queries * (i + 1) / count;
        result.push_back(
            {int32_t(query_starts_[row] + first), int32_t(last - first), start + first});
    }
    return result;
}

AttentionPieces AttentionPlan::cut(int64_t heads, int64_t kv_heads, int64_t window) const {
    const int64_t group = heads / kv_heads;
    std::vector<SplitBlock> found;
    int64_t total = 0;
    for (int64_t row = 0; row < rows_; ++row)
        for (const AttentionQueries& queries : blocks(row, group)) {
            found.push_back(SplitBlock(queries, block_tables + row * table_size, row, window));
            total += kv_heads * work(queries.tokens * group, found.back().keys);
        }
    const int64_t most = total / (PIECES_PER_THREAD * num_threads_);
    const int64_t shared_rows =
        std::min(MOST_SHARED_ROWS, std::max(LEAST_SHARED_ROWS, most / SPLIT - 8));
    const auto shared = shared_splits(found, block_size, shared_rows / group);

    Collector collector(heads, kv_heads, window);
    for (SplitBlock& block : found) {
        const int64_t rows = block.queries.tokens * group, cost = work(rows, block.keys);
        const int64_t splits = block.last_split - block.first_split + 1;
        const bool divided = num_threads_ > 1 && splits > 1 && cost > most;
        const bool shares = !block.shared.empty();
        block.first_merge = int32_t(collector.next_merge());
        for (int64_t head = 0; head < kv_heads; ++head) {
            if (!divided && !shares) {
                collector.begin(block.row, head, -1, cost);
                collector.add_member(block.queries, -1);
                continue;
            }
            const int32_t merge = collector.add_merge(block.first_split, splits, rows);
            for (int64_t split = block.first_split; split <= block.last_split; ++split) {
                if (block.shares(split)) continue;
                collector.begin(block.row, head, split, cost / splits);
                collector.add_member(block.queries, merge);
            }
        }
    }
    for (const SharedSplit& part : shared)
        for (int64_t head = 0; head < kv_heads; ++head) {
            int64_t tokens = 0;
            for (const size_t index : part.blocks) tokens += found[index].queries.tokens;
            collector.begin(found[part.blocks[0]].row, head, part.split,
                            work(tokens * group, SPLIT));
            for (const size_t index : part.blocks)
                collector.add_member(found[index].queries,
                                     found[index].first_merge + int32_t(head));
        }
    return collector.take();
}

}  // namespace loire
