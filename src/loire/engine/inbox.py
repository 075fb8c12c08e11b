"""Where the news of requests wait for whoever reads them: a coroutine, or a thread."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from loire.base.errors import EngineError
from loire.base.messages import SequenceUpdate


class News(NamedTuple):
    """What a step told of the requests of one inbox."""

    arrived_s: float
    """Monotonic time at which it came."""
    updates: Sequence[SequenceUpdate]


class Inbox(Protocol):
    """The news of one or more requests. take(), in either kind, waits for them."""

    loop: asyncio.AbstractEventLoop | None
    """The event loop on which alone put() and fail() are called; None: any thread does."""

    def put(self, updates: Sequence[SequenceUpdate]) -> None:
        """Add what has come."""
        ...

    def fail(self, error: EngineError) -> None:
        """take() raises once what came before is taken."""
        ...


class LoopInbox:
    """Read by a coroutine, on whose loop everything happens."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop | None = loop
        self._ready = asyncio.Event()
        self._news: list[News] = []
        self._failure: EngineError | None = None

    def put(self, updates: Sequence[SequenceUpdate]) -> None:
        """See Inbox."""
        self._news.append(News(time.monotonic(), updates))
        self._ready.set()

    def fail(self, error: EngineError) -> None:
        """See Inbox."""
        self._failure = error
        self._ready.set()

    async def take(self) -> Sequence[News]:
        """Wait for news; all that have come. Raises what fail() was given."""
        await self._ready.wait()
        news, self._news = self._news, []
        if not news and self._failure is not None:
            raise _own(self._failure)
        # After a failure the event stays set, so that the next call raises.
        if self._failure is None:
            self._ready.clear()
        return news


class ThreadInbox:
    """Read by one thread, filled by another.

    most_held: updates that may wait here before the reader is woken; the end of a sequence always
    wakes it. A reader that wants whole answers only would otherwise take the processor from the
    engine at each step.
    """

    def __init__(self, most_held: int = 0) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._most_held = most_held
        self._held: list[News] = []
        self._num_held = 0
        self._given: SimpleQueue[Sequence[News] | EngineError] = SimpleQueue()

    def put(self, updates: Sequence[SequenceUpdate]) -> None:
        """See Inbox."""
        self._held.append(News(time.monotonic(), updates))
        self._num_held += len(updates)
        if self._num_held > self._most_held or any(update.finish_reason for update in updates):
            self._give()

    def fail(self, error: EngineError) -> None:
        """See Inbox."""
        self._give()
        self._given.put(error)

    def take(self) -> Sequence[News]:
        """Wait for news. Raises what fail() was given."""
        given = self._given.get()
        if isinstance(given, EngineError):
            raise _own(given)
        return given

    def _give(self) -> None:
        held, self._held, self._num_held = self._held, [], 0
        self._given.put(held)


class Inboxes:
    """The inboxes of all open requests. deliver() and fail() may be called on any thread."""

    def __init__(self) -> None:
        self._of_request: dict[str, Inbox] = {}

    def __len__(self) -> int:
        return len(self._of_request)

    def open(self, request_id: str, inbox: Inbox) -> None:
        """From now on, news of this request go there."""
        self._of_request[request_id] = inbox

    def close(self, request_id: str) -> None:
        """From now on, news of this request are dropped. Closing twice is fine."""
        self._of_request.pop(request_id, None)

    def deliver(self, updates: Sequence[SequenceUpdate]) -> None:
        """Give the news of a step to those who wait for them; others' are dropped."""
        arrivals: dict[Inbox, list[SequenceUpdate]] = {}
        for update in updates:
            inbox = self._of_request.get(update.request_id)
            if inbox is not None:
                arrivals.setdefault(inbox, []).append(update)
        # One wake-up of each loop per step, however many of its requests have news.
        by_loop: dict[asyncio.AbstractEventLoop | None, list[Callable[[], None]]] = {}
        for inbox, news in arrivals.items():
            by_loop.setdefault(inbox.loop, []).append(partial(inbox.put, news))
        for loop, calls in by_loop.items():
            _call_on(loop, calls)

    def fail(self, error: EngineError) -> None:
        """End all requests with this error, once what came before is taken."""
        for inbox in dict.fromkeys(tuple(self._of_request.values())):
            _call_on(inbox.loop, [partial(inbox.fail, error)])


def _own(error: EngineError) -> EngineError:
    """An error that many readers are given, for one of them: each adds its traceback."""
    own = type(error)(str(error))
    own.__cause__ = error.__cause__
    return own


def _call_on(loop: asyncio.AbstractEventLoop | None, calls: Sequence[Callable[[], None]]) -> None:
    """Call on a loop's own thread, from any thread; not at all if the loop was closed."""

    def call_all() -> None:
        for call in calls:
            call()

    if loop is None or asyncio._get_running_loop() is loop:
        call_all()
        return
    try:
        loop.call_soon_threadsafe(call_all)
    except RuntimeError:
        # The loop ended without its streams: nobody waits there, and the engine goes on.
        if not loop.is_closed():
            raise
