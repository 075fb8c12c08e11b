"""GET /metrics, for Prometheus."""

from fastapi import APIRouter, Request, Response

from loire.server.access.caller import get_caller
from loire.server.observe.metrics import CONTENT_TYPE
from loire.server.observe.request_watch import Observer

router = APIRouter()


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format; those of each tenant for admins only."""
    observer: Observer = request.app.state.served.observer
    caller = get_caller(request.scope)
    text = observer.metrics.scrape(by_tenant=caller.admin, with_adapters=caller.adapters is None)
    return Response(text, media_type=CONTENT_TYPE)
