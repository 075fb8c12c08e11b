"""/metrics on a port of its own: for scrapers without a key, on a network that is kept apart."""

import asyncio
from contextlib import AbstractContextManager, nullcontext

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loire.server.host.connections import GuardedProtocol
from loire.server.observe.metrics import CONTENT_TYPE, Metrics
from loire.server.web.policy_headers import PolicyHeaders


def metrics_app(metrics: Metrics) -> Starlette:
    """An app that answers GET /metrics, to everybody, and nothing else: no figures by tenant."""

    async def scrape(request: Request) -> Response:
        return Response(metrics.scrape(by_tenant=False), media_type=CONTENT_TYPE)

    return Starlette(routes=[Route("/metrics", scrape)], middleware=[Middleware(PolicyHeaders)])


class ScraperProtocol(GuardedProtocol):
    """Scrapers are few: strangers on this port take no descriptors from the other one."""

    max_connections = 32


class MetricsServer(uvicorn.Server):
    """Uvicorn beside the main one: it leaves signals alone, and ends when leave() is called."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(
            uvicorn.Config(
                metrics_app(metrics),
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                lifespan="off",
                timeout_graceful_shutdown=1,
                http=ScraperProtocol,
                ws="none",
            )
        )
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Close the connections and end."""
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        """Sleep until the end."""
        await self._leaving.wait()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """None: the main server hears them."""
        return nullcontext()
