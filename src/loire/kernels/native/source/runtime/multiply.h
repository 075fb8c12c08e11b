// x times a packed weight: how the work is cut into pieces.

#pragma once

#include <cstdint>

#include "../kernels/operations.h"
#include "packed_weight.h"
#include "pool.h"

namespace loire {

// How a product with some tokens is cut.
struct Cut {
    int64_t tokens_per_block, blocks;  // of packed activations
    int64_t token_bytes;               // of those
    int64_t tokens_per_piece, panels_per_piece;
    int64_t row_pieces, column_pieces;

    // into `wanted` pieces at least, if the weight has so many panels.
    Cut(const LinearOperations& operations, const PackedWeight& weight, int64_t tokens,
        int64_t wanted);

    int64_t packed_bytes() const { return blocks * tokens_per_block * token_bytes; }
    int64_t pieces() const { return row_pieces * column_pieces; }

    // Of such a product, without adapters.
    LinearArguments arguments(const PackedWeight& weight, const void* packed, void* out,
                              int64_t out_stride, bool wide, int64_t tokens) const;
};

// Pieces that a product should have, so that threads end at the same time.
int64_t wanted_pieces(const Pool& pool);

// Whether so few tokens are multiplied that threads wait for weights, and may fetch what comes next.
bool waits_for_weights(int64_t tokens);

// Rows of x [.., in], of a weight's type.
struct Rows {
    const char* x;
    int64_t stride;         // bytes from row to row
    const int64_t* chosen;  // which rows; null: one after another
};

// Packs count of the rows, from `first` on, for products with a weight: brought together where they lie
// apart, their inputs in the weight's order.
void pack_rows(const LinearOperations& operations, const PackedWeight& weight, const Rows& rows,
               int64_t first, int64_t count, int64_t tokens_per_block, char* packed,
               Scratch& scratch);

// out [tokens, out] = x [tokens, in] * weight, rows of out lying out_stride elements apart. x is of the
// type that the weight was packed from, out too unless wide: float32 then. operations: those the weight was packed for. activations: room for
// packing. forecast: of the weights that the pool's threads fetch ahead.
//
// numbers: [tokens] of each token's adapter, -1 for none; null where no token has one. hidden: room for
// what adapters work out, where there are numbers.
void multiply(const LinearOperations& operations, Pool& pool, Scratch& activations,
              Forecast& forecast, const PackedWeight& weight, const void* x, void* out,
              int64_t out_stride, bool wide, int64_t tokens, const int32_t* numbers = nullptr,
              Scratch* hidden = nullptr);

}  // namespace loire
