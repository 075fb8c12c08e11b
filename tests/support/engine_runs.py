"""Requests of all lengths, run by an engine to their ends."""

import random
from collections.abc import Sequence

from loire import SamplingParams
from loire.base.messages import EngineRequest
from loire.engine.start import Engine

Tokens = dict[str, list[int]]


def requests() -> list[EngineRequest]:
    """Some share 200 tokens, some are longer than the window, some shorter; siblings, too."""
    rng = random.Random(3)
    shared = [rng.randrange(3, 259) for _ in range(200)]
    prompts = [[rng.randrange(3, 259) for _ in range(n)] for n in (5, 40, 170, 300)]
    prompts += [shared + [rng.randrange(3, 259) for _ in range(n)] for n in (1, 30, 50)]
    return [
        EngineRequest(
            request_id=str(index),
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(
                n=1 + 2 * (index == 2),
                temperature=0.8 * (index % 2),
                max_tokens=40,
                ignore_eos=True,
            ),
            seed=index,
        )
        for index, prompt in enumerate(prompts)
    ]


def played(
    engine: Engine, given: list[EngineRequest], then: Sequence[EngineRequest] = ()
) -> Tokens:
    """then: requests that come when the first ones have been computed for 16 steps."""
    tokens: Tokens = {}
    for request in given:
        engine.core.add(request)
    while engine.core.has_work:
        if len(engine.core.records) == 16:
            for request in then:
                engine.core.add(request)
            then = ()
        for update in engine.core.step():
            assert update.error is None
            name = f"{update.request_id} {update.choice}"
            tokens.setdefault(name, []).extend(update.token_ids)
        engine.core.scheduler.allocator.check()
    assert engine.core.scheduler.allocator.counts.in_use == 0
    return tokens
