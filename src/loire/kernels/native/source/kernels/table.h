// All that an instruction set provides.

#pragma once

#include "operations.h"
#include "recurrent_operations.h"

namespace loire {

struct TypedOperations {
    PieceFunction norm, embed, combine, dequantize, sum_experts;
    PieceFunction multiply_limit;    // LIMIT_ROUNDS times multiply_limit_flops
    int64_t multiply_limit_flops;
    const CacheOperations &plain_cache, &int8_cache;
    const LinearOperations &dense, &int8, &int4;
    // Of 32 elements, and of 256; and those whose scale is a float.
    const BlockOperations &blocks, &superblocks, &float_blocks;
    const RecurrentOperations& recurrent;

    // Null for a format that there is not.
    const LinearOperations* stored(BlockFormat format) const {
        if (int64_t(format) < 0 || int64_t(format) > LAST_BLOCK_FORMAT) return nullptr;
        const BlockOperations* const all[] = {&blocks, &superblocks, &float_blocks};
        for (const BlockOperations* some : all)
            if (some->formats[int64_t(format)].pack != nullptr)
                return &some->formats[int64_t(format)];
        return nullptr;
    }
};

struct Operations {
    const char* name;
    bool (*computes_exactly)();  // whether this processor adds in the order that linear.h states
    PieceFunction choose;            // one row
    PieceFunction route;
    PieceFunction read_limit;        // LIMIT_PIECE_BYTES
    TypedOperations float32, bfloat16;
};

}  // namespace loire
