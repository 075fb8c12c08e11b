"""GET /admin/live: what the engine's steps do, as they happen, for the page's picture of the batch.

A server-sent event stream of JSON. The first event describes the engine; then, at most ten times a
second, the steps since the event before come together in one event. Nothing is computed or sent
while nobody looks or nothing happens. Requests are numbered: no prompt, no id and no text is here.

    {"engine": {"policy": "paged", "max_num_seqs": 128, ...}}
    {"steps": [{...}, ...], "skipped": 0, "totals": {...}, "adapters": {...}}
    {"idle": true}                           there is nothing left to compute
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from itertools import takewhile
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from loire.base.step import StepRecord
from loire.server.serving.served import Served, ServedModel
from loire.server.serving.served_engine import ServedEngine
from loire.server.web.descriptions import ERROR_RESPONSES, stream_description
from loire.server.web.sse import EventStream, event

router = APIRouter()

INTERVAL_S = 0.1

MAX_STEPS = 64
MAX_SLOTS = 2048
"""Most steps, and slots of steps, in one event: the latest ones; the rest counts in the totals."""


class LiveEngine(BaseModel):
    """What does not change while the engine runs."""

    policy: str
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    prefix_caching: bool


class LiveSlot(BaseModel):
    """One sequence in one step.

    request: number of its request, the same for all of its completions; blocks: KV blocks that it
    took itself.
    """

    slot: int
    seq: int
    request: int
    prefill: int
    decode: int
    ended: bool
    blocks: int


class LiveStep(BaseModel):
    """One step. time_s: when it was committed, on a clock that only has differences."""

    step: int
    time_s: float
    compute_s: float
    running: int
    waiting: int
    free: int
    cached: int
    in_use: int
    slots: list[LiveSlot]


class LiveTotals(BaseModel):
    """Sums over all steps since the event before, the skipped ones included.

    A viewer who reads so slowly that the server has forgotten some of them misses those.
    """

    steps: int
    prefill_tokens: int
    decode_tokens: int
    prefix_hit_tokens: int
    preemptions: int


class LiveAdapters(BaseModel):
    """Adapters that have names, and how their memory stands: see
    loire.base.messages.AdapterCounts."""

    named: int
    num_resident: int
    num_bytes: int
    hits: int
    loads: int
    evictions: int


class LiveEvent(BaseModel):
    """An event of the stream; the fields that it does not have are left out."""

    engine: LiveEngine | None = None
    steps: list[LiveStep] | None = None
    skipped: int | None = None
    totals: LiveTotals | None = None
    adapters: LiveAdapters | None = None
    idle: Literal[True] | None = None


@router.get(
    "/admin/live",
    response_class=Response,
    responses=ERROR_RESPONSES | stream_description(LiveEvent),
)
async def live(served: Served) -> Response:
    """The engine's steps as they happen. Numbers only: no prompts, no texts."""
    return EventStream(live_events(served, describe(served.engine)))


async def live_events(served: ServedModel, engine: LiveEngine) -> AsyncGenerator[bytes, None]:
    """The events for one viewer. A slow one gets fewer, each with more in it.

    engine: goes first. Raises ApiError as soon as there is no engine any more.
    """
    yield _event(LiveEvent(engine=engine))
    view = StepView(served.engine.link.records)
    was_idle = False
    while True:
        link = served.engine.link
        news = view.take(link.records)
        is_idle = link.num_requests == 0
        if news is not None:
            yield _event(news.model_copy(update={"adapters": adapters_of(served)}))
        if is_idle and (news is not None or not was_idle):
            yield _event(LiveEvent(idle=True))
        was_idle = is_idle
        await asyncio.sleep(INTERVAL_S)


def adapters_of(served: ServedModel) -> LiveAdapters | None:
    """None where no adapter has a name, or had weights in memory."""
    counts = served.adapter_counts
    named = 0 if served.adapters is None else len(served.adapters.named)
    if not named and not counts.loads:
        return None
    return LiveAdapters(
        named=named,
        num_resident=counts.num_resident,
        num_bytes=counts.num_bytes,
        hits=counts.hits,
        loads=counts.loads,
        evictions=counts.evictions,
    )


class StepView:
    """The steps that one viewer has not seen yet.

    records: at the beginning; what lies before them is not shown.
    """

    def __init__(self, records: Sequence[StepRecord]) -> None:
        self._seen = records[-1].time_s if records else float("-inf")
        self._requests: dict[str, int] = {}

    def take(self, records: Sequence[StepRecord]) -> LiveEvent | None:
        """The news in the latest records, oldest first; None if there are none."""
        new = list(takewhile(lambda record: record.time_s > self._seen, reversed(records)))
        if not new:
            return None
        self._seen = new[0].time_s
        shown: list[StepRecord] = []
        num_slots = 0
        for record in new[:MAX_STEPS]:
            num_slots += len(record.slots)
            if shown and num_slots > MAX_SLOTS:
                break
            shown.append(record)
        shown.reverse()
        self._number_requests(shown)
        return LiveEvent(
            steps=[self._step(record) for record in shown],
            skipped=len(new) - len(shown),
            totals=_totals(new),
        )

    def _number_requests(self, records: Sequence[StepRecord]) -> None:
        """Keep the numbers of requests that are there; a new one has that of its first sequence."""
        present: dict[str, int] = {}
        for record in records:
            for slot in record.slots:
                number = self._requests.get(slot.request_id, slot.seq_id)
                present.setdefault(slot.request_id, number)
        self._requests = present

    def _step(self, record: StepRecord) -> LiveStep:
        return LiveStep(
            step=record.step_id,
            time_s=record.time_s,
            compute_s=record.compute_s,
            running=record.num_running,
            waiting=record.num_waiting,
            free=record.blocks_free,
            cached=record.blocks_cached,
            in_use=record.blocks_in_use,
            slots=[
                LiveSlot(
                    slot=slot.slot,
                    seq=slot.seq_id,
                    request=self._requests[slot.request_id],
                    prefill=slot.num_prefill_tokens,
                    decode=slot.num_decode_tokens,
                    ended=slot.ended,
                    blocks=slot.num_blocks,
                )
                for slot in record.slots
            ],
        )


def _totals(records: Sequence[StepRecord]) -> LiveTotals:
    slots = [slot for record in records for slot in record.slots]
    return LiveTotals(
        steps=len(records),
        prefill_tokens=sum(slot.num_prefill_tokens for slot in slots),
        decode_tokens=sum(slot.num_decode_tokens for slot in slots),
        prefix_hit_tokens=sum(record.num_prefix_hit_tokens for record in records),
        preemptions=sum(record.num_preemptions for record in records),
    )


def describe(client: ServedEngine) -> LiveEngine:
    """What the first event says."""
    config = client.config
    return LiveEngine(
        policy=config.policy,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        prefix_caching=config.enable_prefix_caching,
    )


def _event(news: LiveEvent) -> bytes:
    return event(news.model_dump_json(exclude_none=True))
