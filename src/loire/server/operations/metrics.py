"""GET /metrics, for Prometheus."""

from fastapi import APIRouter, Request, Response

from loire.server.observe.metrics import CONTENT_TYPE
from loire.server.observe.request_watch import Observer

router = APIRouter()


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    observer: Observer = request.app.state.served.observer
    return Response(observer.metrics.scrape(), media_type=CONTENT_TYPE)
