"""Calls are made into requests on threads, of which no tenant can have all.

Rendering a conversation, tokenizing it and having its form checked takes a while, seconds in bad
cases. A call waits for a thread, and for what it does there, only as long as its client is there,
and a server that stops waits for none of them.
"""

import asyncio
import contextlib
import contextvars
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from starlette.types import Receive

from loire.base.foreign_threads import ForeignThreads
from loire.server.access.caller import Caller
from loire.server.web.connection import while_connected

T = TypeVar("T")
_Line = tuple[str, bool]

MAX_OF_TENANT = 4
"""Calls of one tenant, or lines of its batches, that are prepared at the same time."""
MAX_OF_ALL = 24
"""Calls at the same time where there are no tenants."""


class Preparations:
    """The threads of one server, and who waits for them. For one event loop at a time."""

    def __init__(self) -> None:
        self._threads = ForeignThreads("loire-prepare")
        self._places: dict[_Line, asyncio.Semaphore] = {}
        self._num_calls: Counter[_Line] = Counter()

    async def run(
        self,
        caller: Caller,
        receive: Receive,
        work: Callable[[], T],
        abandoned: "Future[None] | None" = None,
    ) -> T:
        """What the work returns, on a thread.

        receive: of a request whose body has been read. abandoned: is done when its client has
        gone, so that what the work waits for can end. Raises ClientDisconnectedError, and what
        the work raises.
        """
        line = caller.tenant, caller.least_priority is not None
        return await while_connected(receive, self._run(line, work, abandoned))

    async def _run(self, line: _Line, work: Callable[[], T], abandoned: "Future[None] | None") -> T:
        loop = asyncio.get_running_loop()
        await self._enter(line)
        running = self._begin(contextvars.copy_context(), work)

        def end(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before
                loop.call_soon_threadsafe(self._leave, line)

        # Not when nobody waits any more: the thread may go on for a while.
        running.add_done_callback(end)
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            if abandoned is not None:
                abandoned.set_result(None)
            raise

    def _begin(self, context: contextvars.Context, work: Callable[[], T]) -> "Future[T]":
        """What the work will return. The interpreter does not wait for such a thread when it ends,
        as it would for those of an executor: what a hostile template does may take half a minute.
        """
        done: Future[T] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                result = context.run(work)
            except BaseException as error:  # noqa: BLE001  raised where it is waited for
                done.set_exception(error)
            else:
                done.set_result(result)

        self._threads.start(run)
        return done

    async def _enter(self, line: _Line) -> None:
        if line not in self._places:
            alone = line == ("", False)
            self._places[line] = asyncio.Semaphore(MAX_OF_ALL if alone else MAX_OF_TENANT)
        self._num_calls[line] += 1
        try:
            await self._places[line].acquire()
        except asyncio.CancelledError:
            self._forget(line)
            raise

    def _leave(self, line: _Line) -> None:
        self._places[line].release()
        self._forget(line)

    def _forget(self, line: _Line) -> None:
        self._num_calls[line] -= 1
        if not self._num_calls[line]:
            del self._places[line], self._num_calls[line]
