// Which splits of keys several sequences of a step have in common.

#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/operations.h"

namespace loire {

// Some tokens of one row, and the splits that they see.
struct SplitBlock {
    SplitBlock(const AttentionQueries& queries, const int32_t* block_table, int64_t row,
               int64_t window);

    // Whether each of the tokens sees all keys of a split.
    bool sees_all(int64_t split) const;
    bool shares(int64_t split) const;

    AttentionQueries queries;
    const int32_t* block_table;
    int64_t row, keys;  // keys: that one or other of the tokens sees
    int64_t first_split, last_split;
    int64_t first_whole_key;      // from here on all tokens see them
    std::vector<int64_t> shared;  // splits in ascending order
    int32_t first_merge = -1;     // of its heads
};

// Blocks of tokens of which each sees the whole split, in the same blocks of memory.
struct SharedSplit {
    int64_t split;
    std::vector<size_t> blocks;  // two or more
};

// All shared splits, of up to most_tokens tokens each; enters them into the blocks as well. Blocks
// that have half of that many tokens alone do not take part: they gain nothing.
std::vector<SharedSplit> shared_splits(std::vector<SplitBlock>& blocks, int64_t block_size,
                                       int64_t most_tokens);

}  // namespace loire
