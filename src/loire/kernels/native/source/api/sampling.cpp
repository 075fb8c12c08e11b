// What happens to logits.

#include "calls.h"
#include "context.h"

using namespace loire;

namespace {

// Throws std::out_of_range if an edit or a line is outside of what it changes.
void check_rows(const ChooseCall& given) {
    if (given.edit_starts != nullptr)
        for (int64_t i = 0; i < given.edit_starts[given.count]; ++i)
            check_range("token", given.edit_tokens[i], given.size);
    if (given.places != nullptr)
        for (int64_t i = 0; i < given.count; ++i)
            if (given.places[i] >= 0) check_range("line of counts", given.places[i], given.num_lines);
    if (given.allowed != nullptr) check_range("token", given.size - 1, 32 * given.words);
}

}  // namespace

LOIRE_EXPORT int loire_choose(Context* context, const ChooseCall* call) {
    return locked(context, [&] {
        const ChooseCall& given = *call;
        check_rows(given);
        ChooseArguments arguments{};
        arguments.rows = given.rows;
        arguments.size = given.size;
        arguments.temperature = given.temperature;
        arguments.min_p = given.min_p;
        arguments.top_k = given.top_k;
        arguments.top_p = given.top_p;
        arguments.draw = given.draw;
        arguments.edit_starts = given.edit_starts;
        arguments.edit_tokens = given.edit_tokens;
        arguments.edit_addends = given.edit_addends;
        arguments.places = given.places;
        arguments.counts = given.counts;
        arguments.seen = reinterpret_cast<uint8_t*>(given.seen);
        arguments.repetition = given.repetition;
        arguments.frequency = given.frequency;
        arguments.presence = given.presence;
        arguments.allowed = reinterpret_cast<const uint32_t*>(given.allowed);
        arguments.words = given.words;
        arguments.tokens = given.tokens;
        arguments.finite = given.finite;
        context->pool.run(given.count, context->operations.choose, &arguments);
    });
}
