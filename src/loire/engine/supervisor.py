"""Keeps an engine running in a process of its own; one that dies or hangs is replaced.

Requests that had not ended go on in the next engine (see journal.py): their clients see a pause.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loire.base import errors
from loire.base.errors import EngineError, LoireError, RequestError
from loire.base.messages import AdapterCounts, AnnouncedAdapter, EngineRequest, SequenceUpdate
from loire.base.step import StepRecord
from loire.engine.journal import Entry, Journal
from loire.engine.process import COMMAND, EngineProcess, Launched, launch
from loire.engine.pulse import MOST_SILENCE_S, Pulse
from loire.engine.restarts import Restarts
from loire.engine.step_watch import StepWatch
from loire.engine.wire import (
    Abort,
    Announce,
    Beat,
    Begun,
    Failed,
    FromEngine,
    Loading,
    LoadModel,
    News,
    Ready,
    Submit,
    WireError,
    frame,
)

log = logging.getLogger("loire.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorOptions:
    """How the engine's process is watched.

    Attributes:
        step_timeout_s: an engine that has work and says nothing for that long, and for
            step_timeout_per_token_s more per token that its step may hold, hangs and is killed.
        silence_timeout_s: an engine that was told to give signs of life (LoadModel.beats) and gives
            none for that long stands still. One that does so for step_timeout_s is killed.
        command: what runs the engine; the number of its socket is appended.
    """

    step_timeout_s: float = 60.0
    step_timeout_per_token_s: float = 0.1
    silence_timeout_s: float = MOST_SILENCE_S
    command: Sequence[str] = COMMAND


DEFAULT_SUPERVISION = SupervisorOptions()

NUM_RECORDS = 512
"""Step records that are kept, the latest ones. Whoever watches looks ten times a second; a record
of 128 sequences takes 30 kB."""


class EngineSupervisor:
    """An EngineLink to a process. Used on one event loop.

    on_updates: given the news of each step. on_failure: told once, when it gives up; from then on
    it is not alive. start() starts the process; load() tells it what to load.
    """

    def __init__(
        self,
        on_updates: Callable[[Sequence[SequenceUpdate]], None],
        on_failure: Callable[[EngineError], None],
        options: SupervisorOptions = DEFAULT_SUPERVISION,
        *,
        on_ready: Callable[[Ready], None] = lambda ready: None,
        on_begin: Callable[[Sequence[str]], None] = lambda request_ids: None,
        on_lost: Callable[[str], None] | None = None,
        on_names: Callable[[bytes, bytes], None] = lambda found, gone: None,
        on_silence: Callable[[bool], None] = lambda is_silent: None,
    ) -> None:
        """on_ready: told of each engine that is loaded. on_begin: told the ids of requests before
        the step that computes them first. on_names: told which prefixes can be found from now on,
        and which no more, if load() asked for that (loire.memory.prefix_names). on_lost: told why
        an engine died; its requests then are not taken to the next one, but forgotten.
        on_silence: told when an engine stands still, and when it has moved again."""
        self.records: deque[StepRecord] = deque(maxlen=NUM_RECORDS)
        """What happened in the latest steps of all engines, oldest first."""
        self.step_listeners: list[Callable[[StepRecord], None]] = []
        """Told of each step, on the event loop."""
        self.num_restarts = 0
        self.blocks_in_use = 0
        """KV blocks that requests hold, as of the engine's latest news."""
        self.adapters = AdapterCounts()
        """How the engine's memory of adapters stands."""
        self.ready: Ready | None = None
        """What the engine that runs now told when it was loaded; None while there is none."""
        self._on_updates = on_updates
        self._on_failure = on_failure
        self._on_ready = on_ready
        self._on_begin = on_begin
        self._on_lost = on_lost
        self._on_names = on_names
        self._on_silence = on_silence
        self._options = options
        self._journal = Journal()
        self._aborts: list[Abort] = []
        self._announced: dict[str, AnnouncedAdapter] = {}
        """To each engine, before its first request."""
        self._flush: asyncio.Handle | None = None
        self._num_held_by_engine = 0
        self._process: EngineProcess | None = None
        self._load: LoadModel | None = None
        self._failed: Failed | None = None
        self._failure: LoireError | None = None
        self._closing = False
        self._first_ready: asyncio.Future[Ready] | None = None
        self._run: asyncio.Task[None] | None = None
        self._restarts = Restarts()
        self._started_s = 0.0
        self._steps = StepWatch(self._most_silence_s, self._kill_hanging)
        self._pulse = Pulse(options.silence_timeout_s, self._note_silence)
        self._stands_still = False

    @property
    def alive(self) -> bool:
        """Whether requests can be taken; also while a new engine is loading."""
        return self._failure is None and not self._closing

    @property
    def is_ready(self) -> bool:
        """Whether there is an engine now that computes."""
        return self.ready is not None

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return None if self._process is None else self._process.pid

    @property
    def num_requests(self) -> int:
        """Requests that have not ended, and those that the engine has still to let go of."""
        return max(len(self._journal), self._num_held_by_engine)

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing is computed yet."""
        return self._journal.num_waiting

    @property
    def num_waiting_sequences(self) -> int:
        """That they ask for: n of each."""
        return self._journal.num_waiting_sequences

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of those."""
        return self._journal.num_waiting_tokens

    # --- an EngineLink ----------------------------------------------------------------------

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Queue requests, all or none. Raises EngineError if there is no engine any more,
        RequestError if one cannot cross to another process.
        """
        if self._failure is not None:
            raise EngineError(str(self._failure))
        if self._closing:
            raise EngineError("the engine was closed: it takes no more requests")
        try:
            frames = [frame(Submit(request)) for request in requests]
        except WireError as error:
            raise RequestError(str(error)) from error
        for request, encoded in zip(requests, frames, strict=True):
            self._journal.add(request, encoded)
        self._flush_soon()

    def abort(self, request_id: str) -> None:
        """End a request at the next step boundary."""
        if self._journal.remove(request_id):
            self._aborts.append(Abort(request_id))
        self._flush_soon()

    def abort_choice(self, request_id: str, choice: int) -> None:
        """End one completion at the next step boundary."""
        if self._journal.end_choice(request_id, choice):
            self._aborts.append(Abort(request_id, choice))
        self._flush_soon()

    def announce(self, adapter: AnnouncedAdapter) -> None:
        """From now on requests may name an adapter, in this engine and in those that follow it."""
        self._announced[adapter.identity] = adapter
        if self.ready is not None and self._process is not None:
            self._process.send(frame(Announce(adapter)))

    # --- life -------------------------------------------------------------------------------

    async def start(self, launched: Launched | None = None) -> None:
        """Start the process, so that it prepares itself while the model is being found.

        launched: one that was started already.
        """
        self._first_ready = asyncio.get_running_loop().create_future()
        await self._start_process(launched)
        self._run = asyncio.create_task(self._keep_running())

    async def load(self, load: LoadModel) -> Ready:
        """Load a model, now and in every later engine; what the engine settled.

        Raises LoireError if the model cannot be loaded, EngineError if the engine dies of it.
        """
        assert self._process is not None
        assert self._first_ready is not None
        self._load = load
        self._process.send(frame(load))
        return await self._first_ready

    async def close(self) -> None:
        """Stop the engine at once. Unfinished requests get no further news."""
        self._closing = True
        self._pulse.stop()
        self._steps.stop()
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
        if self._process is not None:
            await self._process.close()

    async def _start_process(self, launched: Launched | None = None) -> None:
        launched = launched or launch(self._options.command)
        self._started_s = launched.since_s
        self._process = await EngineProcess.attach(launched, self._take)
        if self._load is not None:
            self._process.send(frame(self._load))

    async def _keep_running(self) -> None:
        """Replace each engine that dies, until one cannot be brought up."""
        while True:
            assert self._process is not None
            end = await self._process.wait()
            self._pulse.stop()
            self._stands_still = False
            self.ready = None
            if self._failed is not None:
                known = getattr(errors, self._failed.kind, EngineError)
                return self._give_up(known(self._failed.message))
            try:
                pause_s = self._restarts.died(end, tuple(self._process.last_lines))
            except EngineError as error:
                return self._give_up(error)
            self._after_death(end, pause_s)
            await asyncio.sleep(pause_s)
            self.num_restarts += 1
            await self._start_process()

    def _after_death(self, end: str, pause_s: float) -> None:
        log.error(
            "the engine (process %s) died: %s; starting another%s, %d requests will go on in it",
            self.pid,
            end,
            f" in {pause_s:g} s" if pause_s else "",
            len(self._journal),
        )
        self._aborts.clear()
        self._num_held_by_engine = self.blocks_in_use = 0
        self.adapters = AdapterCounts()
        if self._on_lost is not None:
            self._journal.clear()
            self._on_lost(end)
            return
        culprit = self._journal.crashed()
        if culprit is not None:
            self._fail_request(culprit)

    def _fail_request(self, culprit: Entry) -> None:
        request_id = culprit.request.request_id
        log.error("request %s killed the engine %d times: failed", request_id, culprit.strikes)
        message = (
            f"the engine's process died {culprit.strikes} times while it computed this request "
            f"({request_id}): it is not tried again"
        )
        self._on_updates(
            [
                SequenceUpdate(request_id, choice, finish_reason="error", error=message)
                for choice in range(len(culprit.outputs))
                if choice not in culprit.ended
            ]
        )

    def _give_up(self, failure: LoireError) -> None:
        self._failure = failure
        self._journal.clear()
        assert self._first_ready is not None
        if not self._first_ready.done():
            self._first_ready.set_exception(failure)
        log.error("no engine any more: %s", failure)
        self._on_failure(EngineError(str(failure)))

    # --- messages ---------------------------------------------------------------------------

    def _take(self, message: FromEngine) -> None:
        self._steps.heard()
        self._pulse.heard()
        if self._stands_still:
            self._stands_still = False
            log.warning("the engine (process %s) moves again", self.pid)
            self._on_silence(False)
        match message:
            case News():
                self._take_news(message)
            case Begun(request_ids):
                self._journal.begin(request_ids)
                self._on_begin(request_ids)
            case Loading(stage):
                log.info("engine: %s (%.1f s)", stage, time.monotonic() - self._started_s)
            case Failed():
                self._failed = message
            case Ready():
                self._take_ready(message)
            case Beat():
                pass  # it was heard

    def _take_news(self, news: News) -> None:
        self._num_held_by_engine = news.num_requests
        self.blocks_in_use = news.blocks_in_use
        if news.adapters is not None:
            self.adapters = news.adapters
        if news.record is not None:
            self.records.append(news.record)
            for listener in tuple(self.step_listeners):
                listener(news.record)
        if news.updates:
            self._restarts.did_step()
        if news.names_found or news.names_gone:
            self._on_names(news.names_found, news.names_gone)
        accepted = [self._journal.accept(update) for update in news.updates]
        self._on_updates([update for update in accepted if update is not None])
        if self._journal.num_held:
            self._flush_soon()

    def _take_ready(self, ready: Ready) -> None:
        self.ready = ready
        self._restarts.became_ready()
        log.info("engine ready (%.1f s)", time.monotonic() - self._started_s)
        assert self._first_ready is not None
        if not self._first_ready.done():
            self._first_ready.set_result(ready)
        assert self._process is not None
        wanted = self._journal.adapters()
        self._announced = {
            identity: adapter
            for identity, adapter in self._announced.items()
            if not adapter.withdrawn or identity in wanted
        }
        self._process.send(*(frame(Announce(adapter)) for adapter in self._announced.values()))
        self._on_ready(ready)
        if self._load is not None and self._load.beats:
            self._pulse.start()
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Send what has come up, once this turn of the loop is over: one write for all of it."""
        if self._flush is None and self.ready is not None:
            self._flush = asyncio.get_running_loop().call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush = None
        if self.ready is None or self._process is None:
            return
        aborts, self._aborts = self._aborts, []
        submits = [_encoded(entry) for entry in self._journal.next_to_send()]
        if aborts or submits:
            self._process.send(*map(frame, aborts), *submits)
        if submits:
            self._steps.begin()

    # --- engines that hang ------------------------------------------------------------------

    def _note_silence(self, silent_s: float) -> None:
        """Stopped, swapped out, or stuck: it may move again, so it is only killed after a while."""
        assert self._process is not None
        if not self._stands_still:
            self._stands_still = True
            log.error(
                "the engine (process %d) has given no sign of life for %g s",
                self._process.pid,
                silent_s,
            )
            self._on_silence(True)
        if silent_s >= self._options.step_timeout_s:
            log.error("the engine stands still for %g s: killing it", silent_s)
            self._process.kill()

    def _most_silence_s(self) -> float | None:
        """For how long it may say nothing now; None if it has no work."""
        if self.ready is None or not self._journal.num_sent:
            return None
        num_tokens = min(
            self._journal.num_unproven_tokens + self._journal.num_sent,
            self.ready.config.max_num_batched_tokens,
        )
        options = self._options
        return options.step_timeout_s + num_tokens * options.step_timeout_per_token_s

    def _kill_hanging(self, silent_s: float, limit_s: float) -> None:
        assert self._process is not None
        log.error(
            "the engine made no step for %.1f s (the limit for the tokens that its step may hold "
            "is %.1f s): killing process %d",
            silent_s,
            limit_s,
            self._process.pid,
        )
        self._process.kill()


def _encoded(entry: Entry) -> bytes:
    """The message that sends a request, as it was encoded when it came, if that is still true."""
    encoded, entry.encoded = entry.encoded, None
    if encoded is None or entry.ended:
        encoded = frame(Submit(entry.to_send(), tuple(sorted(entry.ended))))
    return encoded
