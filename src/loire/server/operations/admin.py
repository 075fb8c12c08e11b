"""GET /admin/requests: the calls that run and the latest that have ended, without their texts."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from loire.server.observe.recent_calls import MAX_CALLS
from loire.server.observe.request_watch import Observer
from loire.server.web.call import Call, RequestLife
from loire.server.web.descriptions import ERROR_RESPONSES
from loire.server.web.errors import ApiError
from loire.server.web.json_answer import large_answer

router = APIRouter(prefix="/admin/requests", responses=ERROR_RESPONSES)


class EngineRequestLife(BaseModel):
    """One request that a call made to the engine. Times in seconds from its arrival."""

    request_id: str
    state: str
    """waiting, running, completed, aborted or failed."""
    queue_s: float | None
    ttft_s: float | None
    mean_inter_token_s: float | None
    total_s: float
    """Until its end, or until now."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    steps: int
    """Steps that computed something of it."""
    recomputations: int
    """How often one of its sequences was preempted after its first token."""
    finish_reasons: list[str]
    error: str | None


class CallLife(BaseModel):
    """One HTTP call. id: its x-request-id. started: Unix time."""

    id: str
    tenant: str
    method: str
    path: str
    started: float
    seconds: float
    status: int | None
    error_code: str | None
    requests: list[EngineRequestLife]


class FoundCall(CallLife):
    """The latest call with an id, and the others that came with the same one."""

    same_id: list[CallLife]


class CallList(BaseModel):
    """Calls, the latest first."""

    data: list[CallLife]


async def _observer(request: Request) -> Observer:
    observer: Observer = request.app.state.served.observer
    return observer


Observing = Annotated[Observer, Depends(_observer)]


@router.get("", response_model=CallList)
async def list_requests(
    observer: Observing, limit: Annotated[int, Query(ge=1, le=MAX_CALLS)] = 100
) -> Response:
    """The latest calls that reached the engine."""
    calls = observer.calls.latest()[:limit]
    return await large_answer(lambda: {"data": (_call(call).model_dump() for call in calls)})


@router.get("/{wanted}", response_model=FoundCall)
async def retrieve_request(wanted: str, observer: Observing) -> Response:
    """A call, by its x-request-id or by the engine's name for one of its requests."""
    calls = observer.calls.find(wanted)
    if not calls:
        raise ApiError(
            404,
            f"no call {wanted[:200]!r} is known: only those that reached the engine are, and of "
            f"those the last {MAX_CALLS:,}",
            code="request_not_found",
        )
    return await large_answer(
        lambda: {
            **_call(calls[0]).model_dump(),
            "same_id": (_call(call).model_dump() for call in calls[1:]),
        }
    )


def _call(call: Call) -> CallLife:
    now = time.monotonic()
    return CallLife(
        id=call.call_id,
        tenant=call.tenant,
        method=call.method,
        path=call.path,
        started=call.start_unix_s,
        seconds=(call.end_s or now) - call.start_s,
        status=call.status,
        error_code=call.error_code,
        requests=[_request(life, now) for life in call.requests],
    )


def _request(life: RequestLife, now: float) -> EngineRequestLife:
    begun = life.num_steps or life.num_output_tokens
    return EngineRequestLife(
        request_id=life.request_id,
        state=life.outcome or ("running" if begun else "waiting"),
        queue_s=life.timing.queue_s,
        ttft_s=life.timing.ttft_s,
        mean_inter_token_s=life.timing.tpot_s,
        total_s=(life.end_s or now) - life.arrival_s,
        prompt_tokens=life.num_prompt_tokens,
        cached_tokens=life.num_cached_tokens,
        output_tokens=life.num_output_tokens,
        steps=life.num_steps,
        recomputations=life.num_recomputations,
        finish_reasons=[life.finish_reasons[choice] for choice in sorted(life.finish_reasons)],
        error=life.error,
    )
