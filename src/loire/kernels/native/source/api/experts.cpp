// Mixtures of experts.

#include <stdexcept>
#include <vector>

#include "../runtime/experts.h"
#include "calls.h"
#include "context.h"

using namespace loire;

LOIRE_EXPORT int loire_experts(Context* context, const ExpertsCall* call) {
    std::vector<Expert> experts;
    const bool known = guarded([&] {
        const PackedWeight* held = nullptr;
        for (int64_t i = 0; i < call->experts && held == nullptr; ++i) held = call->gate_ups[i];
        if (held == nullptr) throw std::invalid_argument("there is no expert");
        const int64_t size = held->in_features;
        for (int64_t i = 0; i < call->experts; ++i) {
            if (call->gate_ups[i] == nullptr && call->chunks > 0) {
                experts.push_back({nullptr, nullptr, nullptr, nullptr});
                continue;
            }
            const PackedWeight &gate_up = *call->gate_ups[i], &down = *call->downs[i];
            if (gate_up.gate == Gate::NONE || down.gate != Gate::NONE ||
                gate_up.in_features != size || down.out_features != size ||
                gate_up.out_features != down.in_features ||
                gate_up.is_bfloat16 != held->is_bfloat16 ||
                down.is_bfloat16 != gate_up.is_bfloat16)
                throw std::invalid_argument("the weights of experts do not fit each other");
            experts.push_back({&gate_up, &down, context->linear(gate_up.is_bfloat16, gate_up.format),
                               context->linear(down.is_bfloat16, down.format)});
        }
        check_range("number of chosen groups", call->chosen_groups - 1, call->groups);
        if (call->groups < 1 || call->experts % call->groups != 0)
            throw std::invalid_argument("experts do not fill their groups");
        check_range("number of chosen experts", call->top_k - 1,
                    call->experts / call->groups * call->chosen_groups);
        check_range("number of chunks", call->chunks, MOST_SUMMANDS + 1);
        check_range("kind of scores", call->scores, int64_t(Scores::SIGMOID) + 1);
    });
    if (!known) return -1;
    std::vector<int64_t> borders;
    if (call->chunks > 0) borders.assign(call->borders, call->borders + call->chunks + 1);
    return perform(context, nullptr, [context, given = *call, experts, borders](AttentionPlan*) {
        RouteArguments routing{};
        routing.logits = given.logits;
        routing.bias = given.bias;
        routing.expert_scales = given.expert_scales;
        routing.tokens = given.tokens;
        routing.experts = given.experts;
        routing.top_k = given.top_k;
        routing.groups = given.groups;
        routing.chosen_groups = given.chosen_groups;
        routing.scores = Scores(given.scores);
        routing.renormalise = given.renormalise != 0;
        routing.scale = given.scale;
        compute_experts(context->operations, context->pool, context->activations, context->experts,
                        context->forecast, given.gate_ups, routing, experts.data(), given.x,
                        given.beside, given.out, {borders.data(), given.chunks, given.ranks},
                        given.adapters);
    });
}
