// An instruction set's operations, compiled in parts that say here what they are.
//
// The build compiles each part once per instruction set, with its own flags, and defines LOIRE_TABLE
// (the name of the set's table) and at most one of LOIRE_AVX2, LOIRE_AVX512 and LOIRE_NEON:
// LOIRE_AVX512 with or without LOIRE_AVX512_BF16, and with that or not LOIRE_AMX; LOIRE_NEON with or
// without LOIRE_DOTPROD. Parts are constants: whatever ran when the library is loaded would run on
// processors that do not know the set.

#pragma once

#include "../kernels/operations.h"

#define LOIRE_JOINED(set, name) set##_##name
#define LOIRE_PASTED(set, name) LOIRE_JOINED(set, name)
#define LOIRE_PART(name) LOIRE_PASTED(LOIRE_TABLE, name)

namespace loire {

struct Operations;  // (of table.h, which only its own part needs)

extern const CacheOperations LOIRE_PART(plain_cache_float32), LOIRE_PART(plain_cache_bfloat16);
extern const CacheOperations LOIRE_PART(int8_cache_float32), LOIRE_PART(int8_cache_bfloat16);
extern const LinearOperations LOIRE_PART(dense_float32), LOIRE_PART(dense_bfloat16);
extern const LinearOperations LOIRE_PART(int8_float32), LOIRE_PART(int8_bfloat16);
extern const LinearOperations LOIRE_PART(int4_float32), LOIRE_PART(int4_bfloat16);
extern const BlockOperations LOIRE_PART(blocks_float32), LOIRE_PART(blocks_bfloat16);
extern const BlockOperations LOIRE_PART(superblocks_float32), LOIRE_PART(superblocks_bfloat16);
extern const BlockOperations LOIRE_PART(float_blocks_float32), LOIRE_PART(float_blocks_bfloat16);
extern const Operations LOIRE_TABLE;

}  // namespace loire
