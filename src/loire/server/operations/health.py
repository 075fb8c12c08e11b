"""GET /health, /health/ready and /health/live: for load balancers, supervisors and people.

Ready says whether to send requests here. Live says whether to let the process be: it stays alive
while a model loads, a long prefill runs, or a dead engine is replaced.
"""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from loire.server.serving.served import Served, State

router = APIRouter()


class Health(BaseModel):
    """State of the server. num_requests: requests in the engine, waiting or running."""

    status: Literal["loading", "ok", "draining", "stopped"]
    num_requests: int = 0


class Readiness(BaseModel):
    """Whether requests are taken."""

    status: State


class Liveness(BaseModel):
    """Whether the server works, or can work again by itself."""

    status: Literal["alive", "stopped"]


@router.get(
    "/health",
    response_model=Health,
    responses={503: {"model": Health, "description": "The model loads, or the server stops"}},
)
async def health(response: Response, served: Served) -> Health:
    """200 when requests are taken, else 503."""
    state = served.state
    if state == "ready":
        return Health(status="ok", num_requests=served.num_requests)
    response.status_code = 503
    return Health(status=state, num_requests=served.num_requests)


@router.get(
    "/health/ready",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "The model loads, or the server stops"}},
)
async def ready(response: Response, served: Served) -> Readiness:
    """200 when requests are taken, else 503."""
    state = served.state
    if state != "ready":
        response.status_code = 503
    return Readiness(status=state)


@router.get(
    "/health/live",
    response_model=Liveness,
    responses={503: {"model": Liveness, "description": "The engine cannot be brought up again"}},
)
async def live(response: Response, served: Served) -> Liveness:
    """200 unless the server must be restarted."""
    if served.state == "stopped":
        response.status_code = 503
        return Liveness(status="stopped")
    return Liveness(status="alive")
