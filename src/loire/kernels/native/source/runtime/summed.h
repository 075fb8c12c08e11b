// Products whose inputs lie in chunks, of which other ranks may hold some: the chunks' products are added up
// in a tree (ranks.h), so that the bits do not depend on who holds how many.

#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/operations.h"
#include "grouped.h"
#include "pool.h"
#include "ranks.h"

namespace loire {

// What becomes of [parts][T, N] sums, of this rank and of the others.
struct Total {
    const float* parts;   // [count][T, N]
    int64_t count;
    const float* bias;    // [N] or null, added to the sum
    const void* beside;   // [T, N] of the model's type or null, added then
    void* out;          // [T, N], float32 if wide, else of the model's type
    bool wide, is_bfloat16;
    int64_t tokens, size;
};

// ranks: null where there is but one.
void add_up_parts(Pool& pool, Ranks* ranks, const Total& total);

// x times each chunk's weight. offsets: of each chunk's inputs in x [T, in], in elements.
struct ChunkedProduct {
    std::vector<const PackedWeight*> weights;
    std::vector<const LinearOperations*> operations;
    std::vector<int64_t> offsets;
    const char* x;
    int64_t x_stride;  // bytes
    const int32_t* numbers;  // of adapters, as multiply() takes them
};

struct ChunkedScratch {
    Scratch activations, hidden, parts;
};

void multiply_chunks(Pool& pool, ChunkedScratch& scratch, Forecast& forecast, Ranks* ranks,
                     const ChunkedProduct& product, const Total& total);

}  // namespace loire
