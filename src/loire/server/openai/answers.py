"""What the answers of both completion routes have in common: ids, heads of chunks, logprobs."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from loire import __version__
from loire.base.outputs import PositionLogprobs
from loire.server.openai.protocol import (
    PromptTokensDetails,
    StreamOptions,
    Usage,
)
from loire.server.serving.generation import Generation
from loire.server.web.json_answer import JsonAnswer, written
from loire.server.web.sse import event

SMALL_ANSWER = 10_000
"""Tokens and log-probabilities of an answer that are written on the event loop."""
_large = ThreadPoolExecutor(1, "loire-answers")
"""Writes them one after the other, so that all other work finds its threads free."""

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write; the value is OpenAI's."""


class AnswerHead:
    """Identity of an answer: the fields that all of its chunks repeat."""

    def __init__(self, prefix: str, model: str) -> None:
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.system_fingerprint = f"loire-{__version__}"

    def fields(self) -> dict[str, Any]:
        """The fields by name."""
        return dict(vars(self))


class ChunkWriter:
    """Writes the events of a stream: what all of them repeat is serialised once."""

    def __init__(
        self,
        head: AnswerHead,
        kind: str,
        generation: Generation,
        options: StreamOptions | None,
    ) -> None:
        self._head = json.dumps({**head.fields(), "object": kind})[:-1]
        self._generation = generation
        self.tells_usage = options is not None and options.include_usage
        """Whether the usage comes in a last event of its own."""
        self._in_each = self.tells_usage and options is not None and options.continuous_usage_stats

    def chunk(self, choice: Mapping[str, Any], *, large: bool = False, **beside: Any) -> bytes:
        """An event with what is new of a choice; a large one as written() takes it. beside:
        further fields."""
        news = f"[{written(choice)}]" if large else json.dumps([choice], ensure_ascii=False)
        if beside:
            news += f", {json.dumps(beside)[1:-1]}"
        if not self.tells_usage:
            return event(f'{self._head}, "choices": {news}}}')
        # With include_usage, OpenAI's chunks have a usage of null before the last one.
        usage = self._usage() if self._in_each else "null"
        return event(f'{self._head}, "choices": {news}, "usage": {usage}}}')

    def usage(self) -> bytes:
        """The last event, of its own, with the usage."""
        return event(f'{self._head}, "choices": [], "usage": {self._usage()}}}')

    def _usage(self) -> str:
        return usage_of(self._generation).model_dump_json()


def usage_of(generation: Generation) -> Usage:
    """Tokens so far."""
    num_prompt, num_completion = generation.num_prompt_tokens, generation.num_completion_tokens
    return Usage(
        prompt_tokens=num_prompt,
        completion_tokens=num_completion,
        total_tokens=num_prompt + num_completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=generation.num_cached_tokens),
    )


async def whole_answer(
    generation: Generation, whole: Callable[[], Mapping[str, Any]]
) -> JsonAnswer:
    """The answer of a generation that has ended. whole: makes it, as written() takes it."""
    return JsonAnswer(await beside_loop(generation, lambda: written(whole()).encode()))


async def beside_loop(generation: Generation, work: Callable[[], bytes]) -> bytes:
    """What the work writes of an answer, beside the event loop where that may be large: a million
    log-probabilities take seconds."""
    if generation.num_shown <= SMALL_ANSWER:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_large, work)


def shown_prompt(
    positions: Sequence[PositionLogprobs | None],
) -> Iterator[dict[int, dict[str, Any]] | None]:
    """Log-probabilities of a prompt's tokens: PromptPositions."""
    for position in positions:
        yield (
            None
            if position is None
            else {
                token_id: {
                    "logprob": finite(entry.logprob),
                    "rank": entry.rank,
                    "decoded_token": entry.decoded_token,
                }
                for token_id, entry in position.items()
            }
        )


def likeliest(position: PositionLogprobs, count: int) -> list[tuple[int, float]]:
    """The likeliest tokens of a position and their log-probabilities, best first."""
    ranked = sorted(position.items(), key=lambda item: (-item[1].logprob, item[1].rank))
    return [(token_id, finite(entry.logprob)) for token_id, entry in ranked[:count]]


def finite(logprob: float) -> float:
    """A log-probability that JSON can write."""
    return max(logprob, LOWEST_LOGPROB)
