#include "packed_weight.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace loire {

namespace {

float widen(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

}  // namespace

PackedWeight::PackedWeight(Pool& pool, WeightMemory& memory, const LinearOperations& operations,
                           const std::vector<WeightPart>& parts, const void* given_bias,
                           bool is_bfloat16, WeightFormat format, Gate gate, Clamp clamp,
                           int64_t out_features, int64_t in_features,
                           std::vector<int32_t> order)
    : is_bfloat16(is_bfloat16),
      format(format),
      gate(gate),
      clamp(clamp),
      out_features(out_features),
      in_features(in_features),
      order(std::move(order)),
      panels((out_features + PANEL - 1) / PANEL * panels_per_output(gate)),
      steps((in_features + operations.step_inputs - 1) / operations.step_inputs),
      panel_bytes(operations.head_bytes + steps * operations.step_bytes),
      adapters(is_bfloat16, gate, out_features, in_features, panels) {
    const size_t rows = size_t(panels * PANEL), data_bytes = size_t(panels * panel_bytes);
    const bool has_scales = format == WeightFormat::INT8;
    const size_t float_bytes = (size_t(given_bias != nullptr) + has_scales) * rows * sizeof(float);
    memory_ = memory.take(data_bytes + float_bytes);
    data = memory_.get();
    float* next = reinterpret_cast<float*>(data + data_bytes);  // (whole lines lie before it)
    if (has_scales) scales = next, next += rows;
    PackArguments arguments{{}, data, scales, gate, out_features, in_features, steps, panel_bytes};
    std::copy(parts.begin(), parts.end(), arguments.parts);
    if (given_bias != nullptr) {
        bias = next;
        for (int64_t row = 0; row < int64_t(rows); ++row) {
            const int64_t source = source_row(row, gate, out_features);
            bias[row] = source < 0     ? 0.0f
                        : is_bfloat16 ? widen(static_cast<const bfloat16*>(given_bias)[source])
                                      : static_cast<const float*>(given_bias)[source];
        }
    }
    pool.run(panels, operations.pack, &arguments);
}

}  // namespace loire
