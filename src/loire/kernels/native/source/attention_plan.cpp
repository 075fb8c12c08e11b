#include "attention_plan.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>

namespace loire {

namespace {
constexpr int64_t ROWS_PER_BLOCK = 60;  // query heads times tokens that share transposed keys
constexpr int64_t PIECES_PER_THREAD = 6;
constexpr int64_t SIZES = 8;  // of pieces that are told apart when they are put in order
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
        if (queries < 0 || context < queries || context > table_size * block_size)
            throw std::invalid_argument(
                "row " + std::to_string(row) + " has " + std::to_string(queries) +
                " queries and a context of " + std::to_string(context) +
                " tokens, but its block table holds " + std::to_string(table_size * block_size));
        const int32_t* table = tables + row * table_size;
        for (int64_t i = 0; i * block_size < context; ++i) {
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

AttentionPieces AttentionPlan::cut(int64_t heads, int64_t kv_heads, int64_t window) const {
    const int64_t group = heads / kv_heads;
    const int64_t block = std::max<int64_t>(1, ROWS_PER_BLOCK / group);
    // Work is counted in keys: reading one costs about as much as multiplying it with some rows.
    const auto work = [&](int64_t tokens, int64_t keys) { return keys * (8 + tokens * group); };
    const auto keys_of = [&](int64_t first_position, int64_t tokens) {
        return first_position + tokens - std::max<int64_t>(0, first_position - window + 1);
    };

    int64_t total = 0;
    for (int64_t row = 0; row < rows_; ++row) {
        const int64_t queries = query_starts_[row + 1] - query_starts_[row];
        const int64_t start = context_lens_[row] - queries;
        for (int64_t t = 0; t < queries; t += block) {
            const int64_t tokens = std::min(block, queries - t);
            total += kv_heads * work(tokens, keys_of(start + t, tokens));
        }
    }
    const int64_t most = total / (PIECES_PER_THREAD * num_threads_);

    AttentionPieces made{heads, kv_heads, window, {}, {}, {}, {}};
    std::vector<int64_t> costs;
    for (int64_t row = 0; row < rows_; ++row) {
        const int64_t queries = query_starts_[row + 1] - query_starts_[row];
        const int64_t start = context_lens_[row] - queries;
        for (int64_t t = 0; t < queries; t += block) {
            const int64_t tokens = std::min(block, queries - t), first = start + t;
            const int64_t keys = keys_of(first, tokens), cost = work(tokens, keys);
            const int64_t last_split = (first + tokens - 1) / SPLIT;
            const int64_t first_split = (first + tokens - keys) / SPLIT;
            const int64_t splits = last_split - first_split + 1;
            const bool divided = num_threads_ > 1 && splits > 1 && cost > most;
            for (int64_t head = 0; head < kv_heads; ++head) {
                AttentionPiece piece{int32_t(row),    int32_t(head), int32_t(query_starts_[row] + t),
                                     int32_t(tokens), first,         -1,
                                     -1};
                if (!divided) {
                    made.pieces.push_back(piece);
                    costs.push_back(cost);
                    continue;
                }
                piece.group = int32_t(made.merges.size());
                for (int64_t s = 0; s < splits; ++s) {
                    piece.split = int32_t(first_split + s);
                    made.pieces.push_back(piece);
                    costs.push_back(cost / splits);
                }
                made.merges.push_back({made.partials, int32_t(first_split), int32_t(splits)});
                made.splits.push_back(int32_t(splits));
                made.partials += splits;
                made.partial_rows = std::max(made.partial_rows, tokens * group);
            }
        }
    }
    made.unfinished = made.splits;

    std::vector<int64_t> order(costs.size());
    std::iota(order.begin(), order.end(), 0);
    // The largest first; among those of about one size the same head together, because rows that
    // share a prefix read the same keys: they are still in the cache.
    const int64_t highest = costs.empty() ? 1 : *std::max_element(costs.begin(), costs.end()) + 1;
    const auto rank = [&](int64_t i) {
        return std::make_tuple(-(costs[i] * SIZES / highest), made.pieces[i].kv_head,
                               made.pieces[i].split);
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return rank(a) < rank(b); });
    std::vector<AttentionPiece> sorted;
    sorted.reserve(order.size());
    for (const int64_t index : order) sorted.push_back(made.pieces[index]);
    made.pieces = std::move(sorted);
    return made;
}

}  // namespace loire
