"""The client's side of a running engine: from submissions to streams of outputs.

The engine may be a thread of this process or a process of its own; both are an EngineLink.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Protocol

from loire.base.errors import EngineError, RequestTimeoutError
from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.outputs import RequestOutput
from loire.engine.ledger import RequestLedger
from loire.engine.requests import Submission
from loire.text.tokenizer import Tokenizer


class EngineLink(Protocol):
    """The way to an engine. Its news come back through RequestStreams.deliver()."""

    @property
    def alive(self) -> bool:
        """Whether requests can be taken."""
        ...

    def submit(self, request: EngineRequest) -> None:
        """Queue a request. Raises EngineError if the engine has stopped."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request at the next step boundary."""
        ...

    def abort_choice(self, request_id: str, choice: int) -> None:
        """End one completion at the next step boundary."""
        ...


class RequestStreams:
    """The requests whose clients are waiting. deliver() and fail() may be called on any thread."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    async def stream(
        self,
        link: EngineLink,
        submission: Submission,
        tokenizer: Tokenizer,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Run a submission; each output holds what is new.

        Leaving the iterator (or cancelling the task) ends the request and frees its blocks.
        timeout_s: most seconds from its arrival to its end, waiting included. Raises
        RequestTimeoutError after those, EngineError if the engine stops.
        """
        ledger = RequestLedger(submission, tokenizer)
        loop = asyncio.get_running_loop()
        stream = _Stream(loop)
        self._streams[ledger.request_id] = stream
        timer: asyncio.TimerHandle | None = None
        if timeout_s is not None:
            # Both clocks are the monotonic one.
            due = submission.arrival_s + timeout_s
            timer = loop.call_at(due, lambda: stream.fail(_timed_out(ledger, timeout_s)))
        try:
            link.submit(submission.request)
            while not ledger.finished:
                for update in await stream.take():
                    news = ledger.apply(update)
                    if news is None:
                        continue
                    output, must_abort = news
                    if must_abort:
                        link.abort_choice(update.request_id, update.choice)
                    yield output
        finally:
            if timer is not None:
                timer.cancel()
            del self._streams[ledger.request_id]
            if not ledger.finished and link.alive:
                link.abort(ledger.request_id)

    def deliver(self, updates: Sequence[SequenceUpdate]) -> None:
        """Give the news of a step to those who wait for them; others' are dropped."""
        arrivals: dict[_Stream, list[SequenceUpdate]] = {}
        for update in updates:
            stream = self._streams.get(update.request_id)
            if stream is not None:
                arrivals.setdefault(stream, []).append(update)
        # One wake-up of each loop per step, however many of its streams have news.
        by_loop: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
        for stream, news in arrivals.items():
            by_loop.setdefault(stream.loop, []).append(partial(stream.put, news))
        for loop, calls in by_loop.items():
            _call_on(loop, calls)

    def fail(self, error: EngineError) -> None:
        """End every stream with this error, once what came before is taken."""
        for stream in tuple(self._streams.values()):
            _call_on(stream.loop, [partial(stream.fail, error)])


class _Stream:
    """Updates of one request, on their way to a coroutine. Used on the coroutine's loop alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ready = asyncio.Event()
        self._updates: list[SequenceUpdate] = []
        self._failure: EngineError | None = None

    def put(self, updates: Sequence[SequenceUpdate]) -> None:
        """Add what has come."""
        self._updates += updates
        self._ready.set()

    def fail(self, error: EngineError) -> None:
        """take() raises once what came before is taken."""
        self._failure = error
        self._ready.set()

    async def take(self) -> list[SequenceUpdate]:
        """Wait for updates; all that have come. Raises what fail() was given."""
        await self._ready.wait()
        updates, self._updates = self._updates, []
        if not updates and self._failure is not None:
            raise self._failure
        # After a failure the event stays set, so that the next call raises.
        if self._failure is None:
            self._ready.clear()
        return updates


def _timed_out(ledger: RequestLedger, timeout_s: float) -> RequestTimeoutError:
    num_tokens = sum(len(completion.token_ids) for completion in ledger.completions)
    return RequestTimeoutError(
        f"request {ledger.request_id} was not finished within {timeout_s:g} s, waiting included: "
        f"it had generated {num_tokens} tokens; ask for fewer, or try again when there is less load"
    )


def _call_on(loop: asyncio.AbstractEventLoop, calls: Sequence[Callable[[], None]]) -> None:
    """Call on a loop's own thread, from any thread; not at all if the loop was closed."""
    if asyncio._get_running_loop() is loop:
        for call in calls:
            call()
        return

    def call_all() -> None:
        for call in calls:
            call()

    try:
        loop.call_soon_threadsafe(call_all)
    except RuntimeError:
        # The loop ended without its streams: nobody waits there, and the engine goes on.
        if not loop.is_closed():
            raise
