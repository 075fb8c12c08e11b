// What a format of weights needs, put together.

#pragma once

#include "../kernels/linear.h"
#include "../kernels/low_rank.h"
#include "../kernels/operations.h"

namespace loire {
namespace {

template <typename Format>
constexpr LinearOperations linear_operations(PieceFunction pack, PieceFunction pack_activations) {
    return {pack,
            pack_activations,
            linear_piece<Format>,
            low_rank_piece<typename Format::Element>,
            Format::Head::BYTES,
            STEP,
            Format::WEIGHT_BYTES,
            Format::ACTIVATIONS * int64_t(sizeof(typename Format::Activation)),
            block_tokens<Format::MOST_ROWS>,
            1,
            nullptr};
}

}  // namespace
}  // namespace loire
