"""Follows each request from its arrival to its end: for the metrics, and to be asked about."""

import logging
import time

from loire.base.outputs import RequestOutput
from loire.base.step import StepRecord
from loire.engine.requests import Submission
from loire.server.observe.metrics import Metrics
from loire.server.observe.recent_calls import RecentCalls
from loire.server.web.call import Call, RequestLife, Waiting

log = logging.getLogger("loire.server")


class Observer:
    """Knows all requests that run, and the latest that have ended.

    log_prompts: the log shows what was asked; otherwise nothing keeps a prompt's text.
    """

    def __init__(self, metrics: Metrics, *, log_prompts: bool = False) -> None:
        self.metrics = metrics
        self.calls = RecentCalls()
        self._log_prompts = log_prompts
        self._running: dict[str, RequestLife] = {}
        self._waiting: dict[str, Waiting] = {}

    def watch(self, submission: Submission, call: Call, adapter: str = "") -> "RequestWatch":
        """A request begins. adapter: the name of the one that it is for."""
        request = submission.request
        life = RequestLife(
            request.request_id,
            submission.arrival_s,
            len(request.prompt_token_ids),
            request.params.n,
            adapter,
        )
        call.requests.append(life)
        self.calls.add(call, life)
        self._running[life.request_id] = life
        life.begins_to_wait(self.waiting_of(call.tenant))
        if self._log_prompts:
            shown = submission.prompt
            if shown is None:
                shown = f"token ids {request.prompt_token_ids}"
            log.info("call %s asks %s: %s", call.call_id, life.request_id, shown)
        return RequestWatch(self, life, call.tenant, timed=request.priority <= 0)

    def waiting_of(self, tenant: str) -> Waiting:
        """What of a tenant is waiting."""
        return self._waiting.setdefault(tenant, Waiting())

    def adapters(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of those that requests are for which run, and which wait."""
        running: set[str] = set()
        waiting: set[str] = set()
        for life in self._running.values():
            if life.adapter:
                (running if life.waits_in is None else waiting).add(life.adapter)
        return tuple(sorted(running)), tuple(sorted(waiting))

    def let_go(self, life: RequestLife) -> None:
        """A request has ended."""
        life.waits_no_more()
        self._running.pop(life.request_id, None)

    def add_step(self, record: StepRecord) -> None:
        """Count a step, for the metrics and for the requests in it."""
        self.metrics.add_step(record)
        stepped: set[str] = set()
        for slot in record.slots:
            life = self._running.get(slot.request_id)
            if life is None or not (slot.num_prefill_tokens or slot.num_decode_tokens):
                continue
            if slot.request_id not in stepped:
                stepped.add(slot.request_id)
                life.num_steps += 1
                life.waits_no_more()
            if slot.num_decode_tokens:
                life.decoding.add(slot.seq_id)
            elif slot.seq_id in life.decoding:
                # It had been preempted: what it knows is computed again, like a prompt.
                life.decoding.discard(slot.seq_id)
                life.num_recomputations += 1


class RequestWatch:
    """Sees what a request gives, and counts it.

    timed: whether its times are measured; those of background work, for which nobody waits, would
    hide how long people wait.
    """

    def __init__(self, observer: Observer, life: RequestLife, tenant: str, *, timed: bool) -> None:
        self.life = life
        self._observer = observer
        self._metrics = observer.metrics
        self._tenant = tenant
        self._timed = timed
        self._output_tokens = self._metrics.output_tokens.labels(tenant)
        self._last_token_s: dict[int, float] = {}

    def see(self, output: RequestOutput) -> None:
        """Count what is new."""
        life = self.life
        first = life.num_output_tokens == 0
        now = time.monotonic()
        for delta in output.outputs:
            num_tokens = len(delta.token_ids)
            if num_tokens:
                life.num_output_tokens += num_tokens
                self._output_tokens.inc(num_tokens)
                self._note_gap(delta.index, num_tokens, now)
            if delta.finish_reason is not None:
                life.finish_reasons[delta.index] = delta.finish_reason
            life.error = life.error or delta.error
        life.timing = output.timing
        life.num_cached_tokens = output.num_cached_tokens
        if first and life.num_output_tokens:
            self._note_first()
        if output.finished:
            life.outcome = "completed" if life.error is None else "failed"

    def fail(self, error: Exception) -> None:
        """The request could not be brought to its end."""
        self.life.outcome = "failed"
        self.life.error = str(error)

    def end(self) -> None:
        """Nothing more will come; what had not ended was given up by its client."""
        life = self.life
        life.outcome = life.outcome or "aborted"
        life.end_s = time.monotonic()
        self._observer.let_go(life)
        self._metrics.requests.labels(self._tenant, life.outcome).inc()
        if self._timed and life.outcome == "completed":
            self._metrics.request_duration.observe(life.end_s - life.arrival_s)

    def _note_first(self) -> None:
        life, metrics = self.life, self._metrics
        life.waits_no_more()
        if self._timed and life.timing.ttft_s is not None:
            metrics.time_to_first_token.observe(life.timing.ttft_s)
        if self._timed and life.timing.queue_s is not None:
            metrics.queue_time.observe(life.timing.queue_s)
        metrics.prompt_tokens.labels(self._tenant).inc(life.num_prompt_tokens)
        metrics.cached_tokens.labels(self._tenant).inc(life.num_cached_tokens)
        metrics.prefix_queries.inc()
        metrics.prefix_hits.inc(life.num_cached_tokens > 0)

    def _note_gap(self, choice: int, num_tokens: int, now: float) -> None:
        last = self._last_token_s.get(choice)
        self._last_token_s[choice] = now
        if self._timed and last is not None:
            for _ in range(num_tokens):
                self._metrics.inter_token_latency.observe((now - last) / num_tokens)
