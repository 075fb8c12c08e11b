// What a block format needs, put together.

#pragma once

#include "../kernels/linear_blocks.h"
#include "../kernels/linear_float8.h"
#include "../kernels/packed_blocks.h"
#include "linear_operations.h"

namespace loire {
namespace {

// Products of rounded inputs.
template <typename Element, typename Stored>
constexpr LinearOperations rounded_operations(PieceFunction pack) {
    using Format = RoundedBlocks<Element, Stored>;
    LinearOperations own = linear_operations<Format>(pack, round_activations_piece<Format>);
#if defined(LOIRE_AMX)
    own.linear = block_tiles_piece<Format>;
    own.tokens_per_block = quantized_tile_tokens<Format::MOST_ROWS>;
#endif
    return own;
}

// Of inputs in float32 as they are.
template <typename Stored>
constexpr LinearOperations exact_operations(PieceFunction pack) {
    return linear_operations<ExactBlocks<Stored>>(pack, exact_activations_piece<Stored>);
}

// Packed: a format that is packed alike, whose code is used.
template <typename Element, typename Stored, typename Packed = Stored>
constexpr void set_blocks(BlockOperations& operations, BlockFormat format) {
    LinearOperations& own = operations.formats[int(format)];
    if constexpr (sizeof(Element) == 4)
        own = exact_operations<Packed>(pack_blocks_piece<Stored>);
    else
        own = rounded_operations<Element, Packed>(pack_blocks_piece<Stored>);
    own.step_inputs = Stored::ELEMENTS;
    own.embed = embed_blocks_piece<Element, Packed>;
}

// The same with blocks whose codes are numbers in FP8: inputs are taken as they are.
template <typename Element, typename Stored>
constexpr void set_float8(BlockOperations& operations, BlockFormat format) {
    using Format = Float8Blocks<Element, Stored>;
    LinearOperations& own = operations.formats[int(format)];
    own = linear_operations<Format>(pack_blocks_piece<Stored>, float8_activations_piece<Format>);
    own.step_inputs = Format::INPUTS;
    own.embed = embed_blocks_piece<Element, Stored>;
}

template <typename Element>
constexpr BlockOperations block_operations() {
    BlockOperations result{};
    set_blocks<Element, Q4_0>(result, BlockFormat::Q4_0);
    set_blocks<Element, Q4_1>(result, BlockFormat::Q4_1);
    set_blocks<Element, Q5_0>(result, BlockFormat::Q5_0);
    set_blocks<Element, Q5_1>(result, BlockFormat::Q5_1);
    set_blocks<Element, Q8_0>(result, BlockFormat::Q8_0);
    set_blocks<Element, IQ4_NL>(result, BlockFormat::IQ4_NL);
    set_blocks<Element, MXFP4>(result, BlockFormat::MXFP4);
    return result;
}

template <typename Element>
constexpr BlockOperations superblock_operations() {
    BlockOperations result{};
    set_blocks<Element, Q2_K>(result, BlockFormat::Q2_K);
    set_blocks<Element, Q3_K>(result, BlockFormat::Q3_K);
    set_blocks<Element, Q4_K>(result, BlockFormat::Q4_K);
    set_blocks<Element, Q5_K>(result, BlockFormat::Q5_K);
    set_blocks<Element, Q6_K>(result, BlockFormat::Q6_K);
    set_blocks<Element, IQ4_XS>(result, BlockFormat::IQ4_XS);
    return result;
}

// Those whose blocks have a float as their scale, or a number for several groups.
template <typename Element>
constexpr BlockOperations float_block_operations() {
    BlockOperations result{};
    set_blocks<Element, IQ2_XXS, IQ3_S>(result, BlockFormat::IQ2_XXS);
    set_blocks<Element, IQ2_XS, IQ3_S>(result, BlockFormat::IQ2_XS);
    set_blocks<Element, IQ2_S, IQ3_S>(result, BlockFormat::IQ2_S);
    set_blocks<Element, IQ3_XXS, IQ3_S>(result, BlockFormat::IQ3_XXS);
    set_blocks<Element, IQ3_S>(result, BlockFormat::IQ3_S);
    set_blocks<Element, W4_128>(result, BlockFormat::W4_128);
    set_blocks<Element, W4Z_128>(result, BlockFormat::W4Z_128);
    set_blocks<Element, W4Z_32>(result, BlockFormat::W4Z_32);
    set_blocks<Element, W8_128>(result, BlockFormat::W8_128);
    set_blocks<Element, NV4_128>(result, BlockFormat::NV4_128);
    set_float8<Element, F8_128>(result, BlockFormat::F8_128);
    set_blocks<Element, P2>(result, BlockFormat::P2);
    set_blocks<Element, P3>(result, BlockFormat::P3);
    set_blocks<Element, P4>(result, BlockFormat::P4);
    return result;
}

}  // namespace
}  // namespace loire
