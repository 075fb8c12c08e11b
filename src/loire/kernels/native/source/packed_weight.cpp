#include "packed_weight.h"

#include <algorithm>
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

float widen(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

int64_t bytes_per_step(WeightFormat format, bool is_bfloat16) {
    switch (format) {
        case WeightFormat::INT8: return PANEL * STEP;
        case WeightFormat::INT4: return PANEL * (STEP / 2 + 2);
        case WeightFormat::Q4_1: return PANEL * (STEP / 2 + 4);
        case WeightFormat::DENSE: break;
    }
    return PANEL * STEP * (is_bfloat16 ? 2 : 4);
}

}  // namespace

PackedWeight::PackedWeight(Pool& pool, const LinearOperations& operations,
                           const std::vector<WeightPart>& parts, const void* given_bias,
                           bool is_bfloat16, WeightFormat format, int64_t out_features,
                           int64_t in_features)
    : is_bfloat16(is_bfloat16),
      format(format),
      out_features(out_features),
      in_features(in_features),
      panels((out_features + PANEL - 1) / PANEL),
      steps((in_features + STEP - 1) / STEP),
      panel_bytes(steps * bytes_per_step(format, is_bfloat16)) {
    const size_t outputs = size_t(panels * PANEL);
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
    PackArguments arguments{{}, data, scales, out_features, in_features, steps, panel_bytes};
    std::copy(parts.begin(), parts.end(), arguments.parts);
    pool.run(panels, operations.pack, &arguments);
}

PackedWeight::~PackedWeight() {
    std::free(data);
    std::free(scales);
    std::free(bias);
}

}  // namespace loire
