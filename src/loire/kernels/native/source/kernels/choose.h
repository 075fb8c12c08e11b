// Chooses a token from a row of logits: edits, penalties, what may not come, then the largest or a draw.
// loire/kernels/sampling.py is the definition.

#pragma once

#include "draw.h"
#include "largest.h"
#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

// x / factor where x is above 0, else x * factor, of seen tokens; then what counts cost.
INLINE void penalise(const ChooseArguments& a, int64_t index, float* row) {
    const int64_t line = a.places[index] * a.size;
    const int32_t* counts = a.counts + line;
    const uint8_t* seen = a.seen + line;
    const float repetition = a.repetition[index], frequency = a.frequency[index];
    const float presence = a.presence[index];
    for (int64_t i = 0; i < a.size; ++i) {
        if (!seen[i]) continue;  // (what was counted was seen)
        const float x = row[i] > 0.0f ? row[i] / repetition : row[i] * repetition;
        const float frequent = frequency * float(counts[i]);
        const float present = counts[i] > 0 ? presence : 0.0f;
        row[i] = x - frequent - present;
    }
}

INLINE void forbid(const uint32_t* allowed, int64_t size, float* row) {
    const float none = -__builtin_inff();
    for (int64_t i = 0; i < size; i += 32) {
        const uint32_t word = allowed[i / 32];
        if (word == ~0u) continue;
        const int64_t count = size - i < 32 ? size - i : 32;
        for (int64_t j = 0; j < count; ++j)
            if (!(word >> j & 1)) row[i + j] = none;
    }
}

// Changes row number `index` as it is asked to; whether it was.
INLINE bool adjust(const ChooseArguments& a, int64_t index, float* row) {
    bool changed = false;
    if (a.edit_starts != nullptr)
        for (int64_t i = a.edit_starts[index]; i < a.edit_starts[index + 1]; ++i) {
            row[a.edit_tokens[i]] += a.edit_addends[i];
            changed = true;
        }
    if (a.places != nullptr && a.places[index] >= 0) {
        penalise(a, index, row);
        changed = true;
    }
    if (a.allowed != nullptr) {
        forbid(a.allowed + index * a.words, a.size, row);
        changed = true;
    }
    return changed;
}

void choose_piece(const void* untyped, int64_t index, Scratch& scratch) {
    const auto& a = *static_cast<const ChooseArguments*>(untyped);
    float* row = a.rows + index * a.size;
    const Largest given = largest_of(row, a.size);
    a.finite[index] = given.finite;
    a.tokens[index] = 0;
    if (!given.finite) return;
    const bool changed = adjust(a, index, row);
    const bool greedy = a.temperature[index] == 0.0f;
    const int64_t token = !greedy   ? draw_token(a, index, scratch)
                          : changed ? largest_of(row, a.size).index
                                    : given.index;
    a.tokens[index] = token;
    if (a.places != nullptr && a.places[index] >= 0) {
        const int64_t at = a.places[index] * a.size + token;
        a.counts[at] += 1;
        a.seen[at] = 1;
    }
}

}  // namespace
}  // namespace loire
