#include "packed_weight.h"

#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace loire {

namespace {

constexpr size_t HUGE_PAGE = size_t(2) << 20;

char* allocate(size_t bytes) {
    const size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    char* data = static_cast<char*>(std::aligned_alloc(alignment, rounded));
    if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    // Fewer pages to look up while streaming. Only advice: without it all works the same.
    if (bytes >= HUGE_PAGE) (void)madvise(data, rounded, MADV_HUGEPAGE);
#endif
    return data;
}

struct PackArguments {
    const void* weight;
    char* packed;
    int64_t out_features, in_features, row_stride, steps, panel_bytes;
};

// One step of one output.
template <Layout layout>
void put(char* step, int lane, const bfloat16 (&x)[STEP]) {
    auto* words = reinterpret_cast<uint32_t*>(step) + lane;
    for (int word = 0; word < STEP / 2; ++word) {
        const uint32_t earlier = x[2 * word].bits, later = x[2 * word + 1].bits;
        words[word * PANEL] = layout == Layout::TILES ? later << 16 | earlier : earlier << 16 | later;
    }
}

template <Layout>
void put(char* step, int lane, const float (&x)[STEP]) {
    auto* values = reinterpret_cast<float*>(step) + lane;
    for (int input = 0; input < STEP; ++input) values[input * PANEL] = x[input];
}

template <typename Element, Layout layout = Layout::CHAINS>
void pack_panel(const void* untyped, int64_t panel, Scratch&) {
    const auto& a = *static_cast<const PackArguments*>(untyped);
    char* packed = a.packed + panel * a.panel_bytes;
    const int64_t step_bytes = a.panel_bytes / a.steps;
    for (int64_t step = 0; step < a.steps; ++step)
        for (int lane = 0; lane < PANEL; ++lane) {
            const int64_t out = panel * PANEL + lane, in = step * STEP;
            Element x[STEP] = {};
            if (out < a.out_features) {
                const int64_t count = in + STEP <= a.in_features ? STEP : a.in_features - in;
                std::memcpy(x, static_cast<const Element*>(a.weight) + out * a.row_stride + in,
                            size_t(count) * sizeof(Element));
            }
            put<layout>(packed + step * step_bytes, lane, x);
        }
}

float widened(const void* values, int64_t index, bool is_bfloat16) {
    if (!is_bfloat16) return static_cast<const float*>(values)[index];
    const uint32_t bits = uint32_t(static_cast<const bfloat16*>(values)[index].bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

}  // namespace

PackedWeight::PackedWeight(Pool& pool, const void* weight, const void* given_bias,
                           bool is_bfloat16, int64_t out_features, int64_t in_features,
                           int64_t row_stride, Layout layout)
    : is_bfloat16(is_bfloat16),
      out_features(out_features),
      in_features(in_features),
      panels((out_features + PANEL - 1) / PANEL),
      steps((in_features + STEP - 1) / STEP),
      panel_bytes(steps * PANEL * STEP * (is_bfloat16 ? 2 : 4)) {
    if (given_bias != nullptr) {
        bias = reinterpret_cast<float*>(allocate(size_t(panels) * PANEL * sizeof(float)));
        for (int64_t i = 0; i < panels * PANEL; ++i)
            bias[i] = i < out_features ? widened(given_bias, i, is_bfloat16) : 0.0f;
    }
    data = allocate(size_t(panels * panel_bytes));
    const PackArguments arguments{weight,     data,  out_features, in_features,
                                  row_stride, steps, panel_bytes};
    PieceFunction pack = pack_panel<float>;
    if (is_bfloat16)
        pack = layout == Layout::TILES ? pack_panel<bfloat16, Layout::TILES> : pack_panel<bfloat16>;
    pool.run(panels, pack, &arguments);
}

PackedWeight::~PackedWeight() {
    std::free(data);
    std::free(bias);
}

}  // namespace loire
