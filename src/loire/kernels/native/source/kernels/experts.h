// How tokens choose experts, and how what these make of them is put together (Shazeer et al. 2017, "The
// sparsely-gated mixture-of-experts layer"). RouteArguments says what is chosen.
//
// The order of additions: of a softmax sixteen chains, expert i in chain i % 16, brought together two
// by two; of the chosen weights and of a token's results one chain each. So a token has the same bits
// whatever the others are.

#pragma once

#include "activation.h"
#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

// What one token knows of the experts.
struct Candidates {
    float* scores;       // [experts in whole vectors]: what weights are made of
    float* compared;     // the same, with the bias
    bool* open;          // [experts]: may still be chosen
    float* group_worth;  // [groups]
    bool* group_open;    // [groups]
};

// The largest of count that are open, the first of equals: one of them even if none is a number.
INLINE int64_t best(const float* values, const bool* open, int64_t count) {
    int64_t found = -1;
    for (int64_t i = 0; i < count; ++i)
        if (open[i] && (found < 0 || values[i] > values[found])) found = i;
    return found;
}

// Closes all groups but the chosen ones.
inline void choose_groups(const RouteArguments& a, const Candidates& all) {
    const int64_t size = a.experts / a.groups;
    for (int64_t g = 0; g < a.groups; ++g) {
        const float* compared = all.compared + g * size;
        bool* open = all.open + g * size;
        const int64_t first = best(compared, open, size);
        all.group_worth[g] = compared[first];
        all.group_open[g] = true;
        if (a.scores != Scores::SIGMOID || size < 2) continue;
        open[first] = false;
        all.group_worth[g] += compared[best(compared, open, size)];
    }
    __builtin_memset(all.open, 0, a.experts);
    for (int64_t i = 0; i < a.chosen_groups; ++i) {
        const int64_t group = best(all.group_worth, all.group_open, a.groups);
        all.group_open[group] = false;
        __builtin_memset(all.open + group * size, 1, size);
    }
}

// Scores as softmax has them before the division; its sum over all.
inline float exponentials(const RouteArguments& a, float* scores, int64_t padded) {
    Vec16 most = load(scores);
    for (int64_t i = 16; i < padded; i += 16) most = maximum(load(scores + i), most);
    const Vec16 reference = broadcast(largest(most));
    Vec16 total = zero();
    for (int64_t i = 0; i < padded; i += 16) {
        const Vec16 value = exponential(load(scores + i) - reference);
        store(scores + i, value);
        total = total + value;
    }
    return sum(total);
}

inline void route(const RouteArguments& a, int64_t token, const Candidates& all) {
    const int64_t padded = (a.experts + 15) / 16 * 16;
    const float* logits = a.logits + token * a.experts;
    for (int64_t i = 0; i < padded; ++i)
        all.scores[i] = i < a.experts ? logits[i] : -__builtin_inff();
    if (a.scores == Scores::SIGMOID)
        for (int64_t i = 0; i < padded; i += 16)
            store(all.scores + i, sigmoid(load(all.scores + i)));
    // (A softmax keeps the order of the logits, which are compared: rounding may make equals of them.)
    for (int64_t i = 0; i < a.experts; ++i) {
        all.compared[i] = all.scores[i] + (a.bias == nullptr ? 0.0f : a.bias[i]);
        all.open[i] = true;
    }
    if (a.chosen_groups < a.groups) choose_groups(a, all);
    int32_t* chosen = a.chosen + token * a.top_k;
    float* weights = a.weights + token * a.top_k;
    for (int64_t j = 0; j < a.top_k; ++j) {
        const int64_t found = best(all.compared, all.open, a.experts);
        chosen[j] = int32_t(found);
        all.open[found] = false;
    }
    float divisor = 1.0f;
    if (a.scores != Scores::SIGMOID) divisor = exponentials(a, all.scores, padded);
    for (int64_t j = 0; j < a.top_k; ++j) weights[j] = all.scores[chosen[j]];
    if (a.renormalise || a.scores == Scores::SOFTMAX_OF_CHOSEN) {
        divisor = a.scores == Scores::SIGMOID ? 1e-20f : 0.0f;
        for (int64_t j = 0; j < a.top_k; ++j) divisor += weights[j];
    }
    for (int64_t j = 0; j < a.top_k; ++j) {
        weights[j] = weights[j] / divisor * a.scale;
        if (a.expert_scales != nullptr) weights[j] *= a.expert_scales[chosen[j]];
    }
}

// ROWS_PER_PIECE tokens.
inline void route_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& a = *static_cast<const RouteArguments*>(untyped);
    const int64_t padded = (a.experts + 15) / 16 * 16;
    const int64_t floats = 2 * padded + a.groups, flags = a.experts + a.groups;
    auto* memory = reinterpret_cast<float*>(
        scratch.reserve(size_t(floats) * sizeof(float) + size_t(flags)));
    auto* open = reinterpret_cast<bool*>(memory + floats);
    const Candidates all{memory, memory + padded, open, memory + 2 * padded, open + a.experts};
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) route(a, t, all);
}

// ROWS_PER_PIECE tokens.
template <typename Element>
void sum_experts_piece(const void* untyped, int64_t piece, Scratch&) {
    const auto& a = *static_cast<const SumExpertsArguments*>(untyped);
    const auto* made = static_cast<const Element*>(a.made);
    const int64_t end = piece * ROWS_PER_PIECE + ROWS_PER_PIECE;
    for (int64_t t = piece * ROWS_PER_PIECE; t < end && t < a.tokens; ++t) {
        const int64_t* rows = a.rows + t * a.top_k;
        const float* weights = a.weights + t * a.top_k;
        Element* out = static_cast<Element*>(a.out) + t * a.size;
        for (int64_t i = 0; i < a.size; i += 16) {
            Vec16 total = zero();
            for (int64_t j = 0; j < a.top_k; ++j)
                total = total + load_some(made + rows[j] * a.size + i, a.size - i) *
                                    broadcast(weights[j]);
            store_some(out + i, total, a.size - i);
        }
    }
}

}  // namespace
}  // namespace loire
