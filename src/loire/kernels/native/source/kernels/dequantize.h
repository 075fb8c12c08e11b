// Numbers out of the block formats of GGUF (ggml), as its own library computes them: in float32,
// scale * value + minimum, each operation rounded by itself. Half-precision scales times codes are
// never float32 denormals, which the pool would flush.

#pragma once

#include "block_formats.h"
#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

// With AVX2 and bfloat16, g++ 12 takes the call for one without effect and leaves it out, unless it
// is kept from looking into the function.
#if defined(__GNUC__) && !defined(__clang__)
#define OPAQUE __attribute__((noipa))
#else
#define OPAQUE
#endif

template <typename Format, typename Element>
OPAQUE void dequantize_blocks(const uint8_t* source, int64_t blocks, Element* out) {
    Block block;
    for (; blocks > 0; --blocks, source += Format::BYTES, out += Format::ELEMENTS) {
        Format::read(source, block);
        for (int i = 0; i < Format::ELEMENTS / SCALED; ++i) {
            const Vec16 numbers = numbers_of<Format>(block.codes + i * SCALED);
            store(out + i * SCALED, numbers * broadcast(scale_of<Format>(block, i)) +
                                        broadcast(minimum_of<Format>(block, i)));
        }
    }
}

// Piece n is the n-th run of DEQUANTIZED_PER_PIECE elements; the last may be shorter.
template <typename Format, typename Element>
void dequantize_run(const DequantizeArguments& a, int64_t piece) {
    constexpr int64_t RUN = DEQUANTIZED_PER_PIECE / Format::ELEMENTS;
    const int64_t left = a.elements / Format::ELEMENTS - piece * RUN;
    dequantize_blocks<Format>(static_cast<const uint8_t*>(a.blocks) + piece * RUN * Format::BYTES,
                              left < RUN ? left : RUN,
                              static_cast<Element*>(a.out) + piece * DEQUANTIZED_PER_PIECE);
}

template <typename Element>
void dequantize_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const DequantizeArguments*>(untyped);
    with_format(a.format, [&](auto format) { dequantize_run<decltype(format), Element>(a, piece); });
}

}  // namespace
}  // namespace loire
