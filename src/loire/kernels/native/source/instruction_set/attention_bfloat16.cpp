// What reads and writes keys and values, for queries in bfloat16.

#include "../kernels/attention.h"
#include "../kernels/latents.h"
#include "../kernels/rotary.h"
#include "parts.h"

namespace loire {

constexpr CacheOperations LOIRE_PART(plain_cache_bfloat16) = {
    rotary_piece<bfloat16, bfloat16>, latents_piece<bfloat16, bfloat16>, attention_piece<bfloat16, bfloat16>};
constexpr CacheOperations LOIRE_PART(int8_cache_bfloat16) = {
    rotary_piece<bfloat16, int8_t>, latents_piece<bfloat16, int8_t>, attention_piece<bfloat16, int8_t>};

}  // namespace loire
