// Mixers with a state, and gates.

#include "../kernels/convolution.h"
#include "../kernels/delta_net.h"
#include "../kernels/gate.h"
#include "../kernels/mamba2.h"
#include "recurrent_parts.h"

namespace loire {
namespace {

template <typename Element>
constexpr RecurrentOperations recurrent_operations() {
    return {delta_inputs_piece<Element>,   delta_rule_piece<Element>,  mamba2_inputs_piece<Element>,
            mamba2_scan_piece<Element>,    mamba2_outputs_piece<Element>, convolution_piece<Element>,
            kept_inputs_piece<Element>,    gate_piece<Element>};
}

}  // namespace

constexpr RecurrentOperations LOIRE_PART(recurrent_float32) = recurrent_operations<float>();
constexpr RecurrentOperations LOIRE_PART(recurrent_bfloat16) = recurrent_operations<bfloat16>();

}  // namespace loire
