// All operations, compiled once per instruction set. The build gives each copy its own flags and
// defines LOIRE_TABLE (the name of the table it exports) and at most one of LOIRE_AVX2, LOIRE_AVX512
// and LOIRE_NEON: LOIRE_AVX512 with or without LOIRE_AVX512_BF16, and with that or not LOIRE_AMX;
// LOIRE_NEON with or without LOIRE_DOTPROD.

#include "attention.h"
#include "choose.h"
#include "dequantize.h"
#include "limits.h"
#include "linear.h"
#include "linear_blocks.h"
#include "linear_quantized.h"
#include "low_rank.h"
#include "norm.h"
#include "operations.h"
#include "pack.h"
#include "rotary.h"
#include "vec16.h"
#if defined(LOIRE_AMX)
#include "linear_amx.h"
#include "linear_quantized_amx.h"
#endif

namespace loire {
namespace {

template <typename Format>
constexpr LinearOperations linear_operations(PieceFunction pack, PieceFunction pack_activations) {
    return {pack,
            pack_activations,
            linear_piece<Format>,
            low_rank_piece<typename Format::Element>,
            STEP,
            Format::WEIGHT_BYTES,
            Format::ACTIVATIONS * int64_t(sizeof(typename Format::Activation)),
            block_tokens<Format::MOST_ROWS>,
            1,
            nullptr};
}

// Products with the blocks of a file: of rounded inputs, or of float32 as they are.
template <typename Element, typename Stored>
constexpr void set_blocks(TypedOperations& operations, BlockFormat format) {
    using Format = Either<sizeof(Element) == 4, ExactBlocks<Stored>, RoundedBlocks<Stored>>;
    LinearOperations& own = operations.blocks[int(format)];
    own = linear_operations<Format>(pack_blocks_piece<Stored>, blocks_activations_piece<Format>);
    own.step_inputs = Format::INPUTS;
    own.embed = embed_blocks_piece<Element, Stored>;
}

template <typename Element, int BITS, Scales SCALES>
constexpr LinearOperations quantized_operations(PieceFunction pack) {
    using Format = QuantizedFormat<Element, BITS, SCALES>;
    LinearOperations result = linear_operations<Format>(pack, quantize_activations_piece<Format>);
#if defined(LOIRE_AMX)
    result.linear = quantized_tiles_piece<Format>;
    result.tokens_per_block = quantized_tile_tokens<Format::MOST_ROWS>;
#endif
    return result;
}

template <typename Element, typename Format>
constexpr TypedOperations operations(PieceFunction multiply_limit, int64_t flops) {
    TypedOperations result{
            norm_piece<Element>,
            embed_piece<Element>,
            dequantize_piece<Element>,
            {rotary_piece<Element, Element>, attention_piece<Element, Element>},
            {rotary_piece<Element, int8_t>, attention_piece<Element, int8_t>},
            multiply_limit,
            flops,
            linear_operations<Format>(pack_dense_piece<Element>, pack_activations_piece<Format>),
            quantized_operations<Element, 8, Scales::PER_OUTPUT>(pack_int8_piece<Element>),
            quantized_operations<Element, 4, Scales::PER_STEP>(pack_int4_piece<Element>),
            {}};
    set_blocks<Element, Q4_0>(result, BlockFormat::Q4_0);
    set_blocks<Element, Q4_1>(result, BlockFormat::Q4_1);
    set_blocks<Element, Q5_0>(result, BlockFormat::Q5_0);
    set_blocks<Element, Q5_1>(result, BlockFormat::Q5_1);
    set_blocks<Element, Q8_0>(result, BlockFormat::Q8_0);
    set_blocks<Element, Q2_K>(result, BlockFormat::Q2_K);
    set_blocks<Element, Q3_K>(result, BlockFormat::Q3_K);
    set_blocks<Element, Q4_K>(result, BlockFormat::Q4_K);
    set_blocks<Element, Q5_K>(result, BlockFormat::Q5_K);
    set_blocks<Element, Q6_K>(result, BlockFormat::Q6_K);
    set_blocks<Element, IQ4_NL>(result, BlockFormat::IQ4_NL);
    set_blocks<Element, IQ4_XS>(result, BlockFormat::IQ4_XS);
    set_blocks<Element, MXFP4>(result, BlockFormat::MXFP4);
    return result;
}

constexpr int64_t FLOPS = LIMIT_CHAINS * 32;

constexpr TypedOperations bfloat16_operations() {
    TypedOperations result = operations<bfloat16, BFloat16Format>(multiply_bfloat16_piece,
                                                                  FLOPS * BFLOAT16_LINKS);
    // (Its halves lie as in Q4_1 of packed_blocks.h, and AMX's tiles know this one.)
    LinearOperations& q4_1 = result.blocks[int(BlockFormat::Q4_1)];
    const PieceFunction embed = q4_1.embed;
    q4_1 = quantized_operations<bfloat16, 4, Scales::AND_MINIMUM>(pack_q4_1_piece);
    q4_1.embed = embed;
#if defined(LOIRE_AMX)
    result.dense = {pack_dense_piece<bfloat16, false>, pack_tiles_piece, linear_tiles_piece,
                    low_rank_piece<bfloat16>, STEP, PANEL * STEP * 2, TOKEN_STEP_BYTES, tile_tokens,
                    4, nullptr};
    result.multiply_limit = multiply_tiles_limit_piece;
    result.multiply_limit_flops = TILE_LIMIT_FLOPS;
#endif
    return result;
}

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

extern const Operations LOIRE_TABLE;
const Operations LOIRE_TABLE = {
    LOIRE_NAME,
    computes_exactly,
    choose_piece,
    read_piece,
    operations<float, Float32Format>(multiply_float32_piece, FLOPS),
    bfloat16_operations()};
}  // namespace loire
