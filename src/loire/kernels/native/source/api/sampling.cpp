// What happens to logits.

#include "calls.h"
#include "context.h"

using namespace loire;

LOIRE_EXPORT int loire_largest(Context* context, const LargestCall* call) {
    return locked(context, [&] {
        const LargestArguments arguments{call->rows, call->indices, call->finite, call->size};
        context->pool.run(call->count, context->operations.largest, &arguments);
    });
}

LOIRE_EXPORT int loire_draw(Context* context, const DrawCall* call) {
    return locked(context, [&] {
        const DrawArguments arguments{call->rows,  call->size,  call->temperature, call->min_p,
                                      call->top_k, call->top_p, call->draw,        call->tokens};
        context->pool.run(call->count, context->operations.draw, &arguments);
    });
}
