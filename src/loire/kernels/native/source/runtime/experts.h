// Experts: each computed once, for all tokens that chose it, by products whose
// pieces are handed out together (grouped.h).

#pragma once

#include <cstdint>

#include "../kernels/table.h"
#include "forecast.h"
#include "packed_weight.h"
#include "pool.h"
#include "summed.h"

namespace loire {

// One expert: down(gate_up(x)), and the operations that the weights were packed for; null: another rank's.
struct Expert {
    const PackedWeight* gate_up;
    const PackedWeight* down;
    const LinearOperations* gate_up_operations;
    const LinearOperations* down_operations;
};

// Room for what is worked out on the way.
struct ExpertsScratch {
    Scratch routes, hidden, made, parts, low_rank;
};

// Of experts that several ranks have: what each chunk of them makes of a token is added up in their order,
// and the chunks in a tree (ranks.h). borders: [count + 1], of this rank's; count 0: there are no chunks.
struct ExpertChunks {
    const int64_t* borders;
    int64_t count;
    Ranks* ranks;
};

// routing: chosen and weights are left empty. experts: as many as it says, all of one type and with x's
// features in and out. x, out [T, E] of that type, and beside [T, E] or null, which is added last; key: of
// this layer, for the forecast. numbers: [T] of each token's adapter, -1 for none; null where no token has
// one.
void compute_experts(const Operations& operations, Pool& pool, Scratch& activations,
                     ExpertsScratch& scratch, Forecast& forecast, const void* key,
                     RouteArguments routing, const Expert* experts, const void* x,
                     const void* beside, void* out, const ExpertChunks& chunks,
                     const int32_t* numbers);

}  // namespace loire
