// How the attention of a step is cut into pieces.

#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/operations.h"

namespace loire {

struct AttentionPieces {
    int64_t heads, kv_heads, window;  // what they were made for
    std::vector<AttentionPiece> pieces;  // the most work first
    std::vector<AttentionMember> members;
    std::vector<AttentionMerge> merges;
    std::vector<int32_t> splits;   // per merge
    std::vector<int32_t> unfinished;
    int64_t partials = 0;      // splits that are kept for merging
    int64_t partial_rows = 0;  // most rows of one of them
};

// The rows of a step. Points into the caller's tensors, which must outlive it.
class AttentionPlan {
  public:
    // block_size 0: the rows have states, and the tables are the pages of their slots.
    // Throws std::invalid_argument if the lengths do not fit the block tables.
    AttentionPlan(const int32_t* query_starts, const int32_t* context_lens,
                  const int32_t* block_tables, int64_t rows, int64_t table_size,
                  int64_t block_size, int num_threads);

    // Pieces for layers of this shape; made once.
    AttentionPieces& pieces(int64_t heads, int64_t kv_heads, int64_t window);

    const int32_t* query_starts() const { return query_starts_; }
    int64_t rows() const { return rows_; }

    const int32_t* block_tables;
    const int64_t table_size, block_size;
    int64_t tokens = 0;
    int32_t lowest_block = 0, highest_block = 0;  // that a row reads

  private:
    std::vector<AttentionQueries> blocks(int64_t row, int64_t group) const;
    AttentionPieces cut(int64_t heads, int64_t kv_heads, int64_t window) const;

    const int32_t* query_starts_;
    const int32_t* context_lens_;
    const int64_t rows_;
    const int num_threads_;
    std::vector<AttentionPieces> made_;
};

}  // namespace loire
