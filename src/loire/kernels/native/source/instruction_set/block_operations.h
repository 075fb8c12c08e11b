// What a block format needs, put together.

#pragma once

#include "../kernels/linear_blocks.h"
#include "../kernels/packed_blocks.h"
#include "linear_operations.h"

namespace loire {
namespace {

// Products with the blocks of a file: of rounded inputs, or of float32 as they are.
template <typename Element, typename Stored>
constexpr void set_blocks(BlockOperations& operations, BlockFormat format) {
    using Format = Either<sizeof(Element) == 4, ExactBlocks<Stored>, RoundedBlocks<Stored>>;
    LinearOperations& own = operations.formats[int(format)];
    own = linear_operations<Format>(pack_blocks_piece<Stored>, blocks_activations_piece<Format>);
    own.step_inputs = Format::INPUTS;
    own.embed = embed_blocks_piece<Element, Stored>;
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

}  // namespace
}  // namespace loire
