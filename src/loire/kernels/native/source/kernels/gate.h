// Results times the sigmoid of a gate.

#pragma once

#include "activation.h"
#include "recurrent_operations.h"
#include "vec16.h"

namespace loire {
namespace {

template <typename Element>
void gate_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const GateArguments*>(untyped);
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const Element* x = static_cast<const Element*>(a.x) + t * a.size;
        const Element* gate = static_cast<const Element*>(a.gate) + t * a.gate_size;
        Element* out = static_cast<Element*>(a.out) + t * a.size;
        float one;
        store_some(&one, load_some(gate, 1), 1);
        for (int64_t i = 0; i < a.size; i += 16) {
            const int64_t count = a.size - i;
            const Vec16 z = a.gate_size == 1 ? broadcast(one) : load_some(gate + i, count);
            store_some(out + i, load_some(x + i, count) * sigmoid(z), count);
        }
    }
}

}  // namespace
}  // namespace loire
