// What a block format needs, put together.

#pragma once

#include "../kernels/linear_blocks.h"
#include "../kernels/packed_blocks.h"
#include "linear_operations.h"

namespace loire {
namespace {

// Products with the blocks of a file: of rounded inputs, or of float32 as they are. Packed: a format
// that is packed alike, whose code is used.
template <typename Element, typename Stored, typename Packed = Stored>
constexpr void set_blocks(BlockOperations& operations, BlockFormat format) {
    using Format = Either<sizeof(Element) == 4, ExactBlocks<Packed>, RoundedBlocks<Packed>>;
    LinearOperations& own = operations.formats[int(format)];
    own = linear_operations<Format>(pack_blocks_piece<Stored>, blocks_activations_piece<Format>);
    own.step_inputs = Format::INPUTS;
    own.embed = embed_blocks_piece<Element, Packed>;
}

template <typename Element>
constexpr BlockOperations block_operations() {
    BlockOperations result{};
    set_blocks<Element, Q4_0>(result, BlockFormat::Q4_0);
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
    set_blocks<Element, P2>(result, BlockFormat::P2);
    set_blocks<Element, P3>(result, BlockFormat::P3);
    set_blocks<Element, P4>(result, BlockFormat::P4);
    return result;
}

}  // namespace
}  // namespace loire
