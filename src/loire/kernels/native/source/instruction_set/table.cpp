// The table of an instruction set, and the operations that are small.

#include "../kernels/choose.h"
#include "../kernels/dequantize.h"
#include "../kernels/experts.h"
#include "../kernels/limits.h"
#include "../kernels/norm.h"
#include "../kernels/table.h"
#include "../kernels/vec16.h"
#include "parts.h"
#include "recurrent_parts.h"
#if defined(LOIRE_AMX)
#include "../kernels/linear_amx.h"
#endif

namespace loire {
namespace {

constexpr int64_t FLOPS = LIMIT_CHAINS * 32;

// Documents of different makers leave open how VDPBF16PS rounds; linear.h relies on one way.
bool computes_exactly() {
#if defined(LOIRE_AVX512_BF16)
    uint32_t state = 1;
    const auto random = [&] { return state = state * 1664525u + 1013904223u; };
    for (int round = 0; round < 64; ++round) {
        Words x, y, sum;
        for (int i = 0; i < 16; ++i) {  // exponents near 1, so that every order rounds otherwise
            x[i] = (random() & 0x80ff80ffu) | 0x3f003f00u;
            y[i] = (random() & 0x80ff80ffu) | 0x3f003f00u;
            sum[i] = (random() & 0x80ffffffu) | 0x3f000000u;
        }
        const auto upper = [](Words pair) { return (Floats)(pair & 0xffff0000u); };
        const auto lower = [](Words pair) { return (Floats)(pair << 16); };
        Floats expected = fma_part(upper(x), upper(y), (Floats)sum);
        expected = fma_part(lower(x), lower(y), expected);
        const Floats found = _mm512_dpbf16_ps((Floats)sum, (__m512bh)x, (__m512bh)y);
        if (__builtin_memcmp(&expected, &found, sizeof(Floats)) != 0) return false;
    }
#endif
    return true;
}
}  // namespace

const Operations LOIRE_TABLE = {
    LOIRE_NAME,
    computes_exactly,
    choose_piece,
    route_piece,
    read_piece,
    {norm_piece<float>, embed_piece<float>, combine_piece<float>, dequantize_piece<float>,
     sum_experts_piece<float>,
     multiply_float32_piece, FLOPS,
     LOIRE_PART(plain_cache_float32), LOIRE_PART(int8_cache_float32), LOIRE_PART(dense_float32),
     LOIRE_PART(int8_float32), LOIRE_PART(int4_float32), LOIRE_PART(blocks_float32),
     LOIRE_PART(superblocks_float32), LOIRE_PART(float_blocks_float32),
     LOIRE_PART(recurrent_float32)},
    {norm_piece<bfloat16>, embed_piece<bfloat16>, combine_piece<bfloat16>, dequantize_piece<bfloat16>,
     sum_experts_piece<bfloat16>,
#if defined(LOIRE_AMX)
     multiply_tiles_limit_piece, TILE_LIMIT_FLOPS,
#else
     multiply_bfloat16_piece, FLOPS * BFLOAT16_LINKS,
#endif
     LOIRE_PART(plain_cache_bfloat16), LOIRE_PART(int8_cache_bfloat16), LOIRE_PART(dense_bfloat16),
     LOIRE_PART(int8_bfloat16), LOIRE_PART(int4_bfloat16), LOIRE_PART(blocks_bfloat16),
     LOIRE_PART(superblocks_bfloat16), LOIRE_PART(float_blocks_bfloat16),
     LOIRE_PART(recurrent_bfloat16)}};

}  // namespace loire
