#include "packed_weight.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
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
    float* scales;
    int64_t out_features, in_features, row_stride, steps, panel_bytes;

    // One step of one output, in float32 or as it is; zeros beyond the weight.
    template <typename Element>
    void read(int64_t out, int64_t step, Element (&x)[STEP]) const {
        const int64_t in = step * STEP;
        std::memset(x, 0, sizeof(x));
        if (out >= out_features) return;
        const int64_t count = in + STEP <= in_features ? STEP : in_features - in;
        std::memcpy(x, static_cast<const Element*>(weight) + out * row_stride + in,
                    size_t(count) * sizeof(Element));
    }
};

// One step of one output.
template <Layout layout>
void put(char* step, int lane, const bfloat16 (&x)[STEP]) {
    auto* words = reinterpret_cast<uint32_t*>(step) + lane;
    for (int word = 0; word < STEP / 2; ++word) {
        const uint32_t earlier = x[2 * word].bits, later = x[2 * word + 1].bits;
        words[word * DENSE_PANEL] = layout == Layout::TILES ? later << 16 | earlier : earlier << 16 | later;
    }
}

template <Layout>
void put(char* step, int lane, const float (&x)[STEP]) {
    auto* values = reinterpret_cast<float*>(step) + lane;
    for (int input = 0; input < STEP; ++input) values[input * DENSE_PANEL] = x[input];
}

template <typename Element, Layout layout = Layout::CHAINS>
void pack_panel(const void* untyped, int64_t panel, Scratch&) {
    const auto& a = *static_cast<const PackArguments*>(untyped);
    char* packed = a.packed + panel * a.panel_bytes;
    const int64_t step_bytes = a.panel_bytes / a.steps;
    for (int64_t step = 0; step < a.steps; ++step)
        for (int lane = 0; lane < DENSE_PANEL; ++lane) {
            Element x[STEP];
            a.read(panel * DENSE_PANEL + lane, step, x);
            put<layout>(packed + step * step_bytes, lane, x);
        }
}

float widen(float value) { return value; }

float widen(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

// To nearest, ties to even; NaN stays NaN.
bfloat16 narrow(float value) {
    if (value != value) return {0x7fc0};
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// value / scale as a code around zero, from -most to most or one less.
int code_of(float value, float scale, int least, int most, int zero) {
    const float whole = std::nearbyint(value / scale);
    if (whole != whole) return zero;  // nothing but zeros, or a number that is none
    return int(std::min(std::max(whole, float(least)), float(most))) + zero;
}

// The one of larger magnitude, the positive one of equals; NaN if either is NaN or infinite, so that what is scaled
// by it is NaN too.
float larger(float a, float b) {
    if (!(std::fabs(b) < 3e38f)) return std::numeric_limits<float>::quiet_NaN();
    const bool is_larger = std::fabs(b) == std::fabs(a) ? b > a : std::fabs(b) > std::fabs(a);
    return is_larger ? b : a;
}

template <typename Element>
void quantize8_panel(const void* untyped, int64_t panel, Scratch&) {
    const auto& a = *static_cast<const PackArguments*>(untyped);
    for (int64_t lane = 0; lane < QUANTIZED_PANEL; ++lane) {
        const int64_t out = panel * QUANTIZED_PANEL + lane;
        Element x[STEP];
        float most = 0.0f;
        for (int64_t step = 0; step < a.steps; ++step) {
            a.read(out, step, x);
            for (const Element& value : x) most = larger(most, widen(value));
        }
        const float scale = a.scales[out] = std::fabs(most) / 127.0f;
        char* codes = a.packed + panel * a.panel_bytes + lane * 4;
        for (int64_t step = 0; step < a.steps; ++step, codes += QUANTIZED_PANEL * STEP) {
            a.read(out, step, x);
            for (int64_t i = 0; i < STEP; ++i)
                codes[i / 4 * 64 + i % 4] = char(code_of(widen(x[i]), scale, -127, 127, 128));
        }
    }
}

template <typename Element>
void quantize4_panel(const void* untyped, int64_t panel, Scratch&) {
    const auto& a = *static_cast<const PackArguments*>(untyped);
    constexpr int64_t CODE_BYTES = QUANTIZED_PANEL * STEP / 2;
    for (int64_t lane = 0; lane < QUANTIZED_PANEL; ++lane)
        for (int64_t step = 0; step < a.steps; ++step) {
            Element x[STEP];
            a.read(panel * QUANTIZED_PANEL + lane, step, x);
            float most = 0.0f;  // of the largest magnitude, with its sign: it gets the code 0
            for (const Element& value : x) most = larger(most, widen(value));
            const bfloat16 kept = narrow(most / -8.0f);
            const float scale = widen(kept);
            char* packed =
                a.packed + panel * a.panel_bytes + step * (CODE_BYTES + QUANTIZED_PANEL * 2);
            std::memcpy(packed + CODE_BYTES + lane * 2, &kept, 2);
            for (int64_t i = 0; i < STEP / 2; ++i) {
                const int lower = code_of(widen(x[i]), scale, -8, 7, 8);
                const int upper = code_of(widen(x[i + STEP / 2]), scale, -8, 7, 8);
                packed[i / 4 * 64 + lane * 4 + i % 4] = char(upper << 4 | lower);
            }
        }
}

template <typename Element>
PieceFunction packing(WeightFormat format, Layout) {
    switch (format) {
        case WeightFormat::INT8: return quantize8_panel<Element>;
        case WeightFormat::INT4: return quantize4_panel<Element>;
        case WeightFormat::DENSE: break;
    }
    return pack_panel<Element>;
}

PieceFunction packing(bool is_bfloat16, WeightFormat format, Layout layout) {
    if (!is_bfloat16) return packing<float>(format, layout);
    if (format == WeightFormat::DENSE && layout == Layout::TILES)
        return pack_panel<bfloat16, Layout::TILES>;
    return packing<bfloat16>(format, layout);
}

int64_t bytes_per_step(WeightFormat format, bool is_bfloat16) {
    switch (format) {
        case WeightFormat::INT8: return QUANTIZED_PANEL * STEP;
        case WeightFormat::INT4: return QUANTIZED_PANEL * (STEP / 2 + 2);
        case WeightFormat::DENSE: break;
    }
    return DENSE_PANEL * STEP * (is_bfloat16 ? 2 : 4);
}

}  // namespace

PackedWeight::PackedWeight(Pool& pool, const void* weight, const void* given_bias,
                           bool is_bfloat16, WeightFormat format, int64_t out_features,
                           int64_t in_features, int64_t row_stride, Layout layout)
    : is_bfloat16(is_bfloat16),
      format(format),
      out_features(out_features),
      in_features(in_features),
      panel(format == WeightFormat::DENSE ? DENSE_PANEL : QUANTIZED_PANEL),
      panels((out_features + panel - 1) / panel),
      steps((in_features + STEP - 1) / STEP),
      panel_bytes(steps * bytes_per_step(format, is_bfloat16)) {
    const size_t outputs = size_t(panels * panel);
    if (given_bias != nullptr) {
        bias = reinterpret_cast<float*>(allocate(outputs * sizeof(float)));
        for (int64_t i = 0; i < int64_t(outputs); ++i)
            bias[i] = i >= out_features ? 0.0f
                      : is_bfloat16     ? widen(static_cast<const bfloat16*>(given_bias)[i])
                                        : static_cast<const float*>(given_bias)[i];
    }
    if (format == WeightFormat::INT8)
        scales = reinterpret_cast<float*>(allocate(outputs * sizeof(float)));
    data = allocate(size_t(panels * panel_bytes));
    const PackArguments arguments{weight,      data,       scales, out_features,
                                  in_features, row_stride, steps,  panel_bytes};
    pool.run(panels, packing(is_bfloat16, format, layout), &arguments);
}

PackedWeight::~PackedWeight() {
    std::free(data);
    std::free(scales);
    std::free(bias);
}

}  // namespace loire
