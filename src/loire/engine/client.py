"""The client's side of a running engine: from requests to outputs, for coroutines and threads.

The engine may be a thread of this process or a process of its own; both are an EngineLink.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Generic, Protocol, TypeVar

from loire.base.config import EngineConfig
from loire.base.errors import EngineError, RequestTimeoutError
from loire.base.messages import EngineRequest
from loire.base.outputs import RequestOutput
from loire.base.step import StepRecord
from loire.engine.frontend import Frontend
from loire.engine.inbox import Inbox, Inboxes, LoopInbox, News, ThreadInbox
from loire.engine.ledger import RequestLedger
from loire.engine.requests import Submission

MOST_HELD = 64
"""Updates that may wait for a reader of whole answers: of few rows, several steps'."""


class EngineLink(Protocol):
    """The way to an engine. Its news come back through Inboxes.deliver()."""

    @property
    def alive(self) -> bool:
        """Whether requests can be taken."""
        ...

    @property
    def num_requests(self) -> int:
        """Requests in the engine, waiting or running."""
        ...

    @property
    def records(self) -> Sequence[StepRecord]:
        """What happened in the latest steps, oldest first."""
        ...

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Queue requests, all or none, with no step between them.

        Raises EngineError if the engine has stopped.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request at the next step boundary, if it is in the engine."""
        ...

    def abort_choice(self, request_id: str, choice: int) -> None:
        """End one completion at the next step boundary, if it is in the engine."""
        ...


Link = TypeVar("Link", bound=EngineLink, covariant=True)


class EngineClient(Generic[Link]):
    """An engine as its users see it: requests are made with `frontend` and `next_id`, and run.

    link: the way to the engine, whose news go to inboxes. request_timeout_s: most seconds from a
    request's arrival to its end, waiting included.
    """

    def __init__(
        self,
        link: Link,
        inboxes: Inboxes,
        frontend: Frontend,
        config: EngineConfig,
        request_timeout_s: float | None = None,
    ) -> None:
        self.link = link
        self.frontend = frontend
        self.config = config
        self._inboxes = inboxes
        self._request_timeout_s = request_timeout_s
        self._ids = count()

    def next_id(self) -> str:
        """An id that no request of this engine has had."""
        return f"request-{next(self._ids)}"

    async def stream(self, submission: Submission) -> AsyncGenerator[RequestOutput, None]:
        """Run a request from a coroutine; each output holds what is new.

        Leaving the iterator (or cancelling the task) ends the request and frees its blocks.
        Raises RequestTimeoutError when its time is over, EngineError if the engine stops.
        """
        loop = asyncio.get_running_loop()
        inbox = LoopInbox(loop)
        [ledger] = self.ledgers([submission])
        timer: asyncio.TimerHandle | None = None
        timeout_s = self._request_timeout_s
        if timeout_s is not None:
            # Both clocks are the monotonic one.
            due = submission.arrival_s + timeout_s
            timer = loop.call_at(due, lambda: inbox.fail(_timed_out(ledger, timeout_s)))
        try:
            with self._open([ledger], inbox) as requests:
                while requests.num_open:
                    for output in requests.enter(await inbox.take()):
                        yield output
        finally:
            if timer is not None:
                timer.cancel()

    def run(
        self, ledgers: Sequence[RequestLedger], *, at_once: bool = True
    ) -> Generator[RequestOutput, None, None]:
        """Run requests from a thread, together; outputs hold what is new.

        at_once: whether they are wanted as soon as they come. Leaving the iterator ends the
        requests and frees their blocks. Raises EngineError if the engine stops.
        """
        # Who looks for stop strings late computes tokens that nobody wants.
        at_once = at_once or any(ledger.submission.request.params.stop for ledger in ledgers)
        inbox = ThreadInbox(0 if at_once else MOST_HELD)
        with self._open(ledgers, inbox) as requests:
            while requests.num_open:
                yield from requests.enter(inbox.take())

    def ledgers(
        self, submissions: Sequence[Submission], *, keep: bool = False
    ) -> list[RequestLedger]:
        """A ledger for each request, empty yet. keep: whether it shall hold everything."""
        tokenizer = self.frontend.tokenizer
        return [RequestLedger(submission, tokenizer, keeps=keep) for submission in submissions]

    def fail_all(self, error: EngineError) -> None:
        """End every request with this error."""
        self._inboxes.fail(error)

    @contextmanager
    def _open(self, ledgers: Sequence[RequestLedger], inbox: Inbox) -> "Iterator[_OpenRequests]":
        """Submit requests; whatever happens, none is left in the engine afterwards."""
        requests = _OpenRequests(self.link, ledgers)
        try:
            for ledger in ledgers:
                self._inboxes.open(ledger.request_id, inbox)
            self.link.submit([ledger.submission.request for ledger in ledgers])
            yield requests
        finally:
            for ledger in ledgers:
                self._inboxes.close(ledger.request_id)
            requests.abort()


class _OpenRequests:
    """Requests that run together, until all have ended."""

    def __init__(self, link: EngineLink, ledgers: Sequence[RequestLedger]) -> None:
        self._link = link
        self._open = {ledger.request_id: ledger for ledger in ledgers}

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    def enter(self, news: Sequence[News]) -> Iterator[RequestOutput]:
        """Enter what has come, and end in the engine what a stop string has ended."""
        for update, arrived_s in ((u, step.arrived_s) for step in news for u in step.updates):
            ledger = self._open.get(update.request_id)
            new = None if ledger is None else ledger.apply(update, arrived_s)
            if ledger is None or new is None:
                continue
            output, must_abort = new
            if must_abort:
                self._link.abort_choice(update.request_id, update.choice)
            if output.finished:
                del self._open[update.request_id]
            yield output

    def abort(self) -> None:
        """End those that have not ended."""
        for request_id in self._open:
            self._link.abort(request_id)


def _timed_out(ledger: RequestLedger, timeout_s: float) -> RequestTimeoutError:
    num_tokens = sum(completion.num_tokens for completion in ledger.completions)
    return RequestTimeoutError(
        f"request {ledger.request_id} was not finished within {timeout_s:g} s, waiting included: "
        f"it had generated {num_tokens} tokens; ask for fewer, or try again when there is less load"
    )
