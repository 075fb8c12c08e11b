#include "summed.h"

#include <algorithm>
#include <cstring>

#include "multiply.h"

namespace loire {

namespace {

constexpr int64_t PIECE = 16 * SUMMED_TOGETHER;    // numbers that one thread adds up at a time
constexpr int64_t MOST_PART_BYTES = 64 << 20;      // of the chunks' products that are held at once
constexpr int64_t FEWEST_TOKENS = 32;

int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

uint16_t rounded(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40 : nearest);  // a NaN stays one
}

float widened(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

// Numbers [first, first + count) of [T, N], of some parts that are added up.
struct Adding {
    const Total* total;
    const float* parts[MOST_SUMMANDS];  // of each summand, number `first`
    int64_t summands, first, count;
    float* partial;  // the sums, where other ranks' come to them later; null: they are the total
};

// Some sums of one row, from number `first` of [T, N] on. Overwrites them.
void finish_row(const Total& total, int64_t first, int64_t count, float* sums) {
    if (total.bias != nullptr) {
        const float* bias = total.bias + first % total.size;
        for (int64_t i = 0; i < count; ++i) sums[i] += bias[i];
    }
    if (total.beside != nullptr && total.is_bfloat16) {
        const auto* beside = static_cast<const bfloat16*>(total.beside) + first;
        for (int64_t i = 0; i < count; ++i) sums[i] += widened(beside[i]);
    } else if (total.beside != nullptr) {
        const auto* beside = static_cast<const float*>(total.beside) + first;
        for (int64_t i = 0; i < count; ++i) sums[i] += beside[i];
    }
    if (total.wide || !total.is_bfloat16) {
        std::memcpy(static_cast<float*>(total.out) + first, sums, size_t(count) * sizeof(float));
        return;
    }
    auto* out = static_cast<bfloat16*>(total.out) + first;
    for (int64_t i = 0; i < count; ++i) out[i].bits = rounded(sums[i]);
}

void finish(const Total& total, int64_t first, int64_t count, float* sums) {
    while (count > 0) {
        const int64_t some = std::min(total.size - first % total.size, count);
        finish_row(total, first, some, sums);
        first += some, sums += some, count -= some;
    }
}

void adding_piece(const void* untyped, int64_t piece, Scratch& scratch) {
    const auto& a = *static_cast<const Adding*>(untyped);
    auto& rows = *reinterpret_cast<Summands*>(scratch.reserve(sizeof(Summands)));
    const int64_t end = std::min((piece + 1) * PIECE, a.count);
    for (int64_t i = piece * PIECE; i < end; i += SUMMED_TOGETHER) {
        const int64_t together = std::min(SUMMED_TOGETHER, end - i);
        for (int64_t k = 0; k < a.summands; ++k)
            std::memcpy(rows[k], a.parts[k] + i, size_t(together) * sizeof(float));
        add_up(rows, a.summands, together);
        if (a.partial == nullptr)
            finish(*a.total, a.first + i, together, rows[0]);
        else
            std::memcpy(a.partial + i, rows[0], size_t(together) * sizeof(float));
    }
}

void add(Pool& pool, const Adding& adding) {
    pool.run(ceil_div(adding.count, PIECE), adding_piece, &adding);
}

}  // namespace

void add_up_parts(Pool& pool, Ranks* ranks, const Total& total) {
    const int64_t numbers = total.tokens * total.size;
    const bool alone = ranks == nullptr || ranks->size == 1;
    const int64_t most = alone ? numbers : Ranks::PART;
    for (int64_t first = 0; first < numbers; first += most) {
        Adding own{&total, {}, total.count, first, std::min(most, numbers - first), nullptr};
        for (int64_t k = 0; k < total.count; ++k) own.parts[k] = total.parts + k * numbers + first;
        if (!alone) own.partial = ranks->own();
        add(pool, own);
        if (alone) continue;
        ranks->meet();
        Adding all{&total, {}, ranks->size, first, own.count, nullptr};
        for (int64_t k = 0; k < ranks->size; ++k) all.parts[k] = ranks->part(k);
        add(pool, all);
    }
}

void multiply_chunks(Pool& pool, ChunkedScratch& scratch, Forecast& forecast, Ranks* ranks,
                     const ChunkedProduct& product, const Total& total) {
    const int64_t count = int64_t(product.weights.size());
    const int64_t element_bytes = total.is_bfloat16 ? 2 : 4;
    const int64_t token_bytes = count * total.size * int64_t(sizeof(float));
    const int64_t most = std::max(MOST_PART_BYTES / token_bytes, FEWEST_TOKENS);
    for (int64_t first = 0; first < total.tokens; first += most) {
        const int64_t tokens = std::min(most, total.tokens - first);
        char* parts = scratch.parts.reserve(size_t(tokens * token_bytes));
        const int64_t part_bytes = tokens * total.size * int64_t(sizeof(float));
        std::vector<GroupedProduct> products;
        for (int64_t k = 0; k < count; ++k) {
            const PackedWeight& weight = *product.weights[k];
            const char* x = product.x + first * product.x_stride + product.offsets[k] * element_bytes;
            const int32_t* numbers = product.numbers == nullptr ? nullptr : product.numbers + first;
            products.push_back({&weight, product.operations[k], x, product.x_stride, nullptr, tokens,
                                parts + k * part_bytes, total.size, numbers, true});
        }
        forecast.begins({product.weights[0]->data, 0, 0});
        pool.expect(waits_for_weights(tokens) ? forecast.next() : Stream{});
        multiply_together(pool, scratch.activations, scratch.hidden, products);
        Total some = total;
        some.parts = reinterpret_cast<const float*>(parts);
        some.count = count;
        some.out = static_cast<char*>(total.out) +
                   first * total.size * (total.wide ? int64_t(sizeof(float)) : element_bytes);
        some.tokens = tokens;
        add_up_parts(pool, ranks, some);
    }
}

}  // namespace loire
