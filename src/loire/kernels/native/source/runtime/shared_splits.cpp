#include "shared_splits.h"

#include <algorithm>
#include <cstring>

namespace loire {

SplitBlock::SplitBlock(const AttentionQueries& given, const int32_t* block_table, int64_t row,
                       int64_t window)
    : queries(given), block_table(block_table), row(row) {
    const int64_t last = queries.first_position + queries.tokens - 1;
    const int64_t first_key = std::max<int64_t>(0, queries.first_position - window + 1);
    first_whole_key = std::max<int64_t>(0, last - window + 1);
    keys = last + 1 - first_key;
    first_split = first_key / SPLIT;
    last_split = last / SPLIT;
}

bool SplitBlock::sees_all(int64_t split) const {
    return first_whole_key <= split * SPLIT && queries.first_position + 1 >= (split + 1) * SPLIT;
}

bool SplitBlock::shares(int64_t split) const {
    return std::binary_search(shared.begin(), shared.end(), split);
}

std::vector<SharedSplit> shared_splits(std::vector<SplitBlock>& blocks, int64_t block_size,
                                       int64_t most_tokens) {
    std::vector<SharedSplit> found;
    std::vector<size_t> alive;
    int64_t last_split = -1;
    for (size_t i = 0; i < blocks.size(); ++i)
        if (2 * blocks[i].queries.tokens < most_tokens) {
            alive.push_back(i);
            last_split = std::max(last_split, blocks[i].last_split);
        }
    // By all blocks that hold keys of the split, those at its borders included.
    const auto compare = [&](size_t a, size_t b, int64_t split) {
        const int64_t first = split * SPLIT / block_size;
        const int64_t size = ((split + 1) * SPLIT - 1) / block_size + 1 - first;
        return std::memcmp(blocks[a].block_table + first, blocks[b].block_table + first,
                           size_t(size) * sizeof(int32_t));
    };
    for (int64_t split = 0; split <= last_split && alive.size() > 1; ++split) {
        // Those that do not see it whole may see a later one, behind the start of their window.
        const auto seeing = std::partition(alive.begin(), alive.end(), [&](size_t i) {
            return blocks[i].sees_all(split);
        });
        std::sort(alive.begin(), seeing, [&](size_t a, size_t b) {
            const int order = compare(a, b, split);
            return order != 0 ? order < 0 : a < b;
        });
        std::vector<size_t> still(seeing, alive.end());
        for (auto first = alive.begin(); first != seeing;) {
            const auto end = std::find_if(first, seeing, [&](size_t i) {
                return compare(*first, i, split) != 0;
            });
            // What is alone here is alone from here on: a prefix is shared from its start.
            if (end - first > 1) still.insert(still.end(), first, end);
            while (end - first > 1) {
                SharedSplit part{split, {}};
                for (int64_t tokens = 0; first != end; ++first) {
                    tokens += blocks[*first].queries.tokens;
                    if (tokens > most_tokens) break;
                    part.blocks.push_back(*first);
                }
                for (const size_t index : part.blocks) blocks[index].shared.push_back(split);
                found.push_back(std::move(part));
            }
            first = end;
        }
        alive = std::move(still);
    }
    return found;
}

}  // namespace loire
