"""GET /health: whether requests are taken. For load balancers, supervisors and people."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from loire.server.served import Served

router = APIRouter()


class Health(BaseModel):
    """State of the server. num_requests: requests in the engine, waiting or running."""

    status: Literal["loading", "ok", "stopped"]
    num_requests: int = 0


@router.get(
    "/health",
    response_model=Health,
    responses={503: {"model": Health, "description": "The model loads, or the engine stopped"}},
)
async def health(response: Response, to_caller: Served) -> Health:
    """200 when requests are taken, else 503."""
    served = to_caller.model
    if served.loading:
        response.status_code = 503
        return Health(status="loading")
    if not served.alive:
        response.status_code = 503
        return Health(status="stopped")
    return Health(status="ok", num_requests=served.client.num_requests)
