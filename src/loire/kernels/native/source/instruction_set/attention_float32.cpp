// What reads and writes keys and values, for queries in float32.

#include "../kernels/attention.h"
#include "../kernels/latents.h"
#include "../kernels/rotary.h"
#include "parts.h"

namespace loire {

constexpr CacheOperations LOIRE_PART(plain_cache_float32) = {
    rotary_piece<float, float>, latents_piece<float, float>, attention_piece<float, float>};
constexpr CacheOperations LOIRE_PART(int8_cache_float32) = {
    rotary_piece<float, int8_t>, latents_piece<float, int8_t>, attention_piece<float, int8_t>};

}  // namespace loire
