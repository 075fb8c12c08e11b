// x [T, in] times a packed weight [out, in], the same bits for a row whatever the others are.
//
// The order of additions: one chain of fused multiply-adds over the inputs in their order, from zero
// on; then the bias. Denormals are flushed (the caller sets the mode). Inputs are padded with zeros
// to whole steps of 32.
//
// The packed weight is one stream in the order in which it is read: panels of 32 outputs; in a
// panel, steps of 32 inputs; in a step, a lane per output of
//     bfloat16   16 words that hold inputs (2 i, 2 i + 1), the earlier one in the upper half; 2 KiB
//     float32    32 words; 4 KiB
// The packed activations: blocks of up to MOST_ROWS tokens (the last one smaller); in a block, steps; in a
// step, token by token the words in the weight's order.
// AVX-512's VDPBF16PS adds the upper product, then the lower one, each rounded and flushed: two
// links of the chain. (AMX adds in another order, and wants other words: see linear_amx.h.)

#pragma once

#include "activation.h"
#include "low_rank.h"
#include "operations.h"
#include "vec16.h"

namespace loire {
namespace {

// A block of sums in registers: tokens times vectors of 16 outputs.
#if defined(LOIRE_AVX512)
constexpr int DENSE_ROWS = 8, DENSE_VECTORS = 2;
#elif defined(LOIRE_AVX2)
constexpr int DENSE_ROWS = 6, DENSE_VECTORS = 1;
#elif defined(LOIRE_NEON)
constexpr int DENSE_ROWS = 4, DENSE_VECTORS = 1;
#else
constexpr int DENSE_ROWS = 1, DENSE_VECTORS = 1;
#endif

constexpr int64_t MOST_STREAMED = 6;  // tokens for which weights come straight from memory
// Tokens for which unpacking weights before they are multiplied takes longer than it saves, where formats
// can be unpacked so.
constexpr int64_t MOST_WITH_PACKED = 24;

// Several blocks of tokens pass over a chunk of a panel while it is in the L1 cache, and the next
// chunk comes there meanwhile. Every pass asks for all of it: that costs little, and a fetch every
// now and then leaves memory idle in between (docs/log.md).
constexpr int64_t WEIGHT_CHUNK_BYTES = 8 << 10;
constexpr int64_t PREFETCH_BYTES = 4096;  // ahead, where the weights are read once
constexpr int64_t STORED_AHEAD = 12;      // tokens whose results' lines are fetched: rows lie far apart

// In the order of addresses: the processor's own prefetching sees a stream. Stays where it is written:
// compilers would gather the fetches of a whole step in one burst. What is read ONCE shall not drive
// everything else out of the caches.
template <int64_t BYTES, bool ONCE>
INLINE void fetch(const char* source) {
#pragma GCC unroll 4
    for (int64_t line = 0; line < BYTES; line += 64)
        __builtin_prefetch(source + line, 0, ONCE ? 0 : 3);
    asm volatile("" ::: "memory");
}

// What a panel begins with, and steps are given: nothing, unless a format says otherwise. (By value: what
// is in it then stays in registers.)
struct NoHead {
    static constexpr int64_t BYTES = 0;
    // Of outputs from `column` on.
    INLINE NoHead(const char*, int64_t) {}
};

// What formats of plain numbers share. Links: weight and activations of one word, as the links of a
// chain.
template <typename Links>
struct DenseFormat {
    using Head = NoHead;
    static constexpr int MOST_ROWS = DENSE_ROWS, VECTORS = DENSE_VECTORS;
    static constexpr bool IS_UNPACKED = false;

    // One step of ROWS tokens and of outputs [column, column + 16 * VECTORS); fetches a step ahead.
    template <int ROWS, bool ONCE, typename Activation>
    static INLINE void step(Head, const char* weight, int64_t column, const char* ahead,
                            const Activation* activations, Vec16 (&chains)[ROWS][VECTORS]) {
#pragma GCC unroll 16
        for (int word = 0; word < 16; ++word) {
            fetch<Links::WORD_BYTES, ONCE>(ahead + word * Links::WORD_BYTES);
            Links::template links<ROWS>(weight + column * 4, word, activations, chains);
        }
    }
};

struct Float32Format : DenseFormat<Float32Format> {
    using Element = float;
    using Activation = float;
    static constexpr int STREAMED_STEPS = 1;
    static constexpr int64_t WORD_BYTES = 256, WEIGHT_BYTES = 16 * WORD_BYTES;  // per panel and step
    static constexpr int64_t ACTIVATIONS = 32;     // per token and step

    // One step of a token.
    static INLINE void order(const float* x, float* packed) {
        __builtin_memcpy(packed, x, STEP * sizeof(float));
    }

    template <int ROWS>
    static INLINE void links(const char* weight, int64_t word,
                             const float* activations, Vec16 (&chain)[ROWS][VECTORS]) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            Vec16 w[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
                w[v] = load(reinterpret_cast<const float*>(weight + word * WORD_BYTES + half * 128 + v * 64));
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const Vec16 x = broadcast(activations[r * ACTIVATIONS + 2 * word + half]);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) chain[r][v] = fma(x, w[v], chain[r][v]);
            }
        }
    }
};

#if defined(LOIRE_AVX512_BF16)
struct BFloat16Format : DenseFormat<BFloat16Format> {
    using Element = bfloat16;
    using Activation = uint32_t;
    static constexpr int STREAMED_STEPS = 4;  // unrolled; weights come faster then (docs/log.md)
    static constexpr int64_t WORD_BYTES = 128, WEIGHT_BYTES = 16 * WORD_BYTES;
    static constexpr int64_t ACTIVATIONS = 16;

    static INLINE void order(const bfloat16* x, uint32_t* packed) {
        const __m512i pairs = _mm512_loadu_si512(x);
        _mm512_storeu_si512(packed, _mm512_rol_epi32(pairs, 16));
    }

    template <int ROWS>
    static INLINE void links(const char* weight, int64_t word,
                             const uint32_t* activations, Vec16 (&chain)[ROWS][VECTORS]) {
        __m512bh w[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            w[v] = (__m512bh)_mm512_loadu_si512(weight + word * WORD_BYTES + v * 64);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const auto x = (__m512bh)_mm512_set1_epi32(int(activations[r * ACTIVATIONS + word]));
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
                chain[r][v].part[0] = _mm512_dpbf16_ps(chain[r][v].part[0], x, w[v]);
        }
    }
};
#else
struct BFloat16Format : DenseFormat<BFloat16Format> {
    using Element = bfloat16;
    using Activation = float;
    static constexpr int STREAMED_STEPS = 1;
    static constexpr int64_t WORD_BYTES = 128, WEIGHT_BYTES = 16 * WORD_BYTES;
    static constexpr int64_t ACTIVATIONS = 32;

    static INLINE void order(const bfloat16* x, float* packed) {
        store(packed, load(x)), store(packed + 16, load(x + 16));
    }

    template <int ROWS>
    static INLINE void links(const char* weight, int64_t word,
                             const float* activations, Vec16 (&chain)[ROWS][VECTORS]) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            const Vec16 pairs = load(reinterpret_cast<const float*>(weight + word * WORD_BYTES + v * 64));
            const Vec16 upper = upper_halves(pairs), lower = lower_halves(pairs);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const float* x = activations + r * ACTIVATIONS + 2 * word;
                chain[r][v] = fma(x[0], upper, chain[r][v]);
                chain[r][v] = fma(x[1], lower, chain[r][v]);
            }
        }
    }
};
#endif

// Takes the chains of ROWS tokens times 16 * VECTORS outputs, in sums [tokens][PANEL], some steps of a panel
// on. Fetches what lies `distance` bytes ahead of each step; ONCE: the weights are read by nobody else.
template <typename Format, int ROWS, bool ONCE>
void multiply(const char* panel, const char* weight, int64_t column, const void* untyped,
              int64_t steps, int64_t distance, float* sums) {
    constexpr int VECTORS = Format::VECTORS, UNROLLED = ONCE ? Format::STREAMED_STEPS : 1;
    const auto* activations = static_cast<const typename Format::Activation*>(untyped);
    const typename Format::Head head(panel, column);
    Vec16 chains[ROWS][VECTORS];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) chains[r][v] = load(sums + r * PANEL + v * 16);
    const auto one_step = [&]() __attribute__((always_inline)) {
        Format::template step<ROWS, ONCE>(head, weight, column, weight + distance, activations,
                                          chains);
        weight += Format::WEIGHT_BYTES;
        activations += ROWS * Format::ACTIVATIONS;
    };
    int64_t step = 0;
    for (; step + UNROLLED <= steps; step += UNROLLED)
#pragma GCC unroll 4
        for (int i = 0; i < UNROLLED; ++i) one_step();
    for (; step < steps; ++step) one_step();
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) store(sums + r * PANEL + v * 16, chains[r][v]);
}

// All steps of one panel for some tokens, in blocks. added: fetched meanwhile.
template <typename Format>
void multiply_panel(const char* panel, const char* activations, int64_t tokens, int64_t block,
                    int64_t steps, float* sums, FetchedPanels& added) {
    const int64_t activation_bytes = Format::ACTIVATIONS * sizeof(typename Format::Activation);
    const char* weight = panel + Format::Head::BYTES;
    if constexpr (16 * Format::VECTORS == PANEL)
        if (tokens <= block && tokens <= MOST_STREAMED) {
            added.rest();
            return for_count<MOST_STREAMED>(tokens, [&](auto rows) {
                multiply<Format, rows.value, true>(panel, weight, 0, activations, steps,
                                                   PREFETCH_BYTES, sums);
            });
        }
    if constexpr (Format::IS_UNPACKED)
        if (tokens > MOST_WITH_PACKED || block > Format::MOST_ROWS)
            return Format::multiply_many(panel, activations, tokens, block, steps, sums,
                                         added);
    // (A step of some formats, such as IQ3_S, is larger than that.)
    constexpr int64_t chunk =
        Format::WEIGHT_BYTES < WEIGHT_CHUNK_BYTES ? WEIGHT_CHUNK_BYTES / Format::WEIGHT_BYTES : 1;
    for (int64_t step = 0; step < steps; step += chunk) {
        const int64_t count = steps - step < chunk ? steps - step : chunk;
        for (int64_t t = 0; t < tokens; t += block, added.go_on())
            for_count<Format::MOST_ROWS>(tokens - t < block ? tokens - t : block, [&](auto rows) {
                for (int column = 0; column < PANEL; column += Format::VECTORS * 16)
                    multiply<Format, rows.value, false>(
                        panel, weight + step * Format::WEIGHT_BYTES, column,
                        activations + (t * steps + rows.value * step) * activation_bytes, count,
                        chunk * Format::WEIGHT_BYTES, sums + t * PANEL + column);
            });
    }
}

// Some tokens times some panels; pieces of the same tokens follow one another.
struct LinearPiece {
    int64_t first_token, tokens, first_panel, last_panel;
};

inline LinearPiece linear_piece_at(const LinearArguments& a, int64_t piece) {
    const int64_t columns = (a.panels + a.panels_per_piece - 1) / a.panels_per_piece;
    const int64_t first_token = piece / columns * a.tokens_per_piece;
    const int64_t left = a.tokens - first_token;
    const int64_t first_panel = piece % columns * a.panels_per_piece;
    const int64_t last_panel = first_panel + a.panels_per_piece;
    return {first_token, left < a.tokens_per_piece ? left : a.tokens_per_piece, first_panel,
            last_panel < a.panels ? last_panel : a.panels};
}

// Sixteen sums, scaled, with their bias and with what the token's adapter adds, null for none. row: the
// first of theirs in the packed weight.
INLINE Vec16 finished(const LinearArguments& a, int64_t row, const float* sums,
                      const Vec16* added) {
    Vec16 value = load(sums);
    if (a.scales != nullptr) value = value * load(a.scales + row);
    if (a.bias != nullptr) value = value + load(a.bias + row);
    if (added != nullptr) value = value + *added;
    return value;
}

template <typename Element>
INLINE Vec16 rounded(const Vec16& value) {
    Element kept[16];
    store(kept, value);
    return load(kept);
}

// The first count of 16 results of a token, from sums of one panel, or of two that are panel_sums apart;
// added: to the first and, PANEL / 16 further, to the second.
template <typename Element>
INLINE void finish_some(const LinearArguments& a, int64_t row, const float* sums,
                        int64_t panel_sums, const Vec16* added, int64_t at, int64_t count) {
    const Vec16 value = finished(a, row, sums, added);
    if (a.wide) return store_some(static_cast<float*>(a.out) + at, value, count);
    auto* out = static_cast<Element*>(a.out) + at;
    if (a.gate == Gate::NONE) return store_some(out, value, count);
    // Rounded first, as where they are results of their own.
    if (a.gate == Gate::SQUARED_RELU)
        return store_some(out, squared_relu(rounded<Element>(value)), count);
    const Vec16 other = finished(a, row + PANEL, sums + panel_sums,
                                 added == nullptr ? nullptr : added + PANEL / 16);
    store_some(out, gated(a.gate, a.clamp, rounded<Element>(value), rounded<Element>(other)), count);
}

// Stores the results of one panel or, gated, of two. sums: [tokens][PANEL] of each.
template <typename Element>
void finish_panel(const LinearArguments& a, int64_t panel, int64_t first_token, int64_t tokens,
                  const float* sums, int64_t panel_sums) {
    const int64_t first_column = panel / panels_per_output(a.gate) * PANEL;
    const int64_t left = a.out_features - first_column, row = panel * PANEL;
    const auto finish_token = [&](int64_t t, const Vec16* added) __attribute__((always_inline)) {
        const int64_t at = (first_token + t) * a.out_stride + first_column;
        if (!a.wide)
            __builtin_prefetch(static_cast<Element*>(a.out) + at + STORED_AHEAD * a.out_stride, 1);
        for (int64_t column = 0; column < PANEL && column < left; column += 16)
            finish_some<Element>(a, row + column, sums + t * PANEL + column, panel_sums,
                                 added == nullptr ? nullptr : added + column / 16, at + column,
                                 left - column);
    };
    if (a.adapted.num_groups == 0) {
        for (int64_t t = 0; t < tokens; ++t) finish_token(t, nullptr);
        return;
    }
    AddedPanels added;
    for (int64_t first = 0; first < tokens; first += AddedPanels::MOST_TOKENS) {
        const int64_t rest = tokens - first;
        const int64_t count = rest < AddedPanels::MOST_TOKENS ? rest : AddedPanels::MOST_TOKENS;
        added.template add<Element>(a.adapted, panel, panels_per_output(a.gate),
                                    first_token + first, count);
        for (int64_t t = 0; t < count; ++t)
            finish_token(first + t, added.has[t] ? added.sums[t] : nullptr);
    }
}

template <typename Format>
void linear_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& a = *static_cast<const LinearArguments*>(untyped);
    const auto [first_token, tokens, first_panel, last_panel] = linear_piece_at(a, piece);
    const int64_t panel_bytes = Format::Head::BYTES + a.steps * Format::WEIGHT_BYTES;
    const int64_t token_bytes =
        a.steps * Format::ACTIVATIONS * sizeof(typename Format::Activation);
    const char* activations =
        static_cast<const char*>(a.activations) + first_token * token_bytes;
    const int64_t together = panels_per_output(a.gate), panel_sums = tokens * PANEL;
    const int64_t sum_bytes = together * panel_sums * sizeof(float);
    float* sums = reinterpret_cast<float*>(scratch.reserve(sum_bytes));
    const int64_t times = together * (tokens + Format::MOST_ROWS - 1) / Format::MOST_ROWS *
                          ((panel_bytes + WEIGHT_CHUNK_BYTES - 1) / WEIGHT_CHUNK_BYTES);
    for (int64_t panel = first_panel; panel < last_panel; panel += together) {
        __builtin_memset(sums, 0, sum_bytes);
        FetchedPanels added(a.adapted, panel, together, sizeof(typename Format::Element), times);
        for (int64_t i = 0; i < together; ++i)
            multiply_panel<Format>(static_cast<const char*>(a.weight) + (panel + i) * panel_bytes,
                                   activations, tokens, a.tokens_per_block, a.steps,
                                   sums + i * panel_sums, added);
        finish_panel<typename Format::Element>(a, panel, first_token, tokens, sums, panel_sums);
    }
}

// Blocks of even size: a block of few tokens takes as long to load its weights. More than a few
// tokens pass in two blocks at least: the second one has its weights in the L1 cache.
template <int64_t MOST_ROWS>
int64_t block_tokens(int64_t tokens) {
    const int64_t blocks = (tokens + MOST_ROWS - 1) / MOST_ROWS;
    return blocks == 1 && tokens <= MOST_STREAMED ? tokens
           : blocks == 1                          ? (tokens + 1) / 2
                                                  : (tokens + blocks - 1) / blocks;
}

// The rows of one block of tokens: each(inputs, packed, rows) packs one; its steps lie rows apart.
template <typename Format, typename Each>
void for_rows_of_piece(const PackActivationsArguments& a, int64_t piece, const Each& each) {
    const int64_t first = piece * a.tokens_per_block, left = a.tokens - first;
    const int64_t rows = left < a.tokens_per_block ? left : a.tokens_per_block;
    for (int64_t r = 0; r < rows; ++r)
        each(static_cast<const typename Format::Element*>(a.x) + (first + r) * a.in_features,
             static_cast<typename Format::Activation*>(a.packed) +
                 (first * a.steps + r) * Format::ACTIVATIONS,
             rows);
}

// One block of tokens in the order in which the chains take them, padded with zeros to whole steps.
template <typename Format>
void pack_activations_piece(const void* untyped, int64_t piece, Scratch&) {
    using Element = typename Format::Element;
    const auto& a = *static_cast<const PackActivationsArguments*>(untyped);
    for_rows_of_piece<Format>(a, piece, [&](const Element* x, auto* packed, int64_t rows) {
        for (int64_t k = 0; k < a.in_features; k += STEP, packed += rows * Format::ACTIVATIONS) {
            if (a.in_features - k >= STEP) {
                Format::order(x + k, packed);
                continue;
            }
            Element padded[STEP] = {};
            __builtin_memcpy(padded, x + k, (a.in_features - k) * sizeof(Element));
            Format::order(padded, packed);
        }
    });
}

}  // namespace
}  // namespace loire
