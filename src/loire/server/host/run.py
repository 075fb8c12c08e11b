"""`serve`: a server that answers at once and takes requests as soon as its model is loaded.

The socket is bound before anything else, so that a taken port is told in the first moment; then
/health answers 503 while the model loads in a process of its own, and 200 from then on.
This process never imports torch.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from loire.base.errors import ConfigError, EngineError
from loire.engine.process import Launched
from loire.engine.supervised import SupervisedEngine
from loire.engine.supervisor import SupervisorOptions
from loire.server.access.admission import Admission
from loire.server.host.adapters import check_adapters, load_adapters
from loire.server.host.app import create_app
from loire.server.host.connections import (
    GuardedProtocol,
    most_connections,
    note_loop_trouble,
)
from loire.server.host.logs import log_to_stderr
from loire.server.host.metrics_port import MetricsServer
from loire.server.host.settings import ServerSettings
from loire.server.host.tls import ServerTls
from loire.server.observe.audit_log import AuditLog
from loire.server.observe.spans import Spans
from loire.server.serving.served import ServedModel
from loire.server.storage.file_watch import FileWatch

if TYPE_CHECKING:
    from loire.fleet.ray.front import RayFleetClient

log = logging.getLogger("loire.server")

FLUSH_S = 2
"""Once all requests have ended, connections have that long to send what they hold."""

DRAIN_POLL_S = 0.05

BACKLOG = 2048
"""Connections that may wait to be accepted; a whole load may arrive at once."""


def serve(
    settings: ServerSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    launched: Launched | None = None,
) -> int:
    """Serve a model until SIGTERM or SIGINT; 0 after a clean end.

    port: 0 takes a free one; the log says which. launched: an engine's process, if one was started
    already. Raises ConfigError if the address cannot be
    bound, or should not be without keys, whatever loading the model raises, and EngineError if
    the engine is lost for good.
    """
    log_to_stderr(settings.log.format)
    check_adapters(settings)
    tls = None if settings.tls is None else ServerTls(settings.tls)
    access = settings.access.settle(host)
    spans = Spans.from_environment() if settings.log.spans else None
    listener = bind(host, port)
    metrics_port = settings.metrics_port
    scraped = None if metrics_port is None else bind(host, metrics_port, flag="--metrics-port")
    served = ServedModel(
        settings.names, admission=Admission(settings.limits), log_prompts=settings.log.prompts
    )
    audit = None if settings.log.audit_file is None else AuditLog(settings.log.audit_file)
    app = create_app(served, access, settings.data_dir, spans, audit)
    watches = [access.key_watch, None if tls is None else tls.watch]
    try:
        asyncio.run(_serve(listener, scraped, app, served, settings, launched, tls, watches))
    finally:
        listener.close()
        if scraped is not None:
            scraped.close()
    return 0


def bind(host: str, port: int, *, flag: str = "--port") -> socket.socket:
    """A socket that listens: clients that connect now are answered soon.

    Raises ConfigError if the address cannot be bound.
    """
    if not 0 <= port < 2**16:
        raise ConfigError(f"the port must be between 0 and 65535, but is {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol named, asyncio switches off Nagle's algorithm: else what is written in
        # two parts, such as the pieces of a stream, waits for the client's delayed acknowledgement.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another {flag} "
            f"(0 takes a free one) or --host"
        ) from error
    return listener


async def _serve(
    listener: socket.socket,
    scraped: socket.socket | None,
    app: FastAPI,
    served: ServedModel,
    settings: ServerSettings,
    launched: Launched | None,
    tls: ServerTls | None,
    watches: Sequence[FileWatch | None],
) -> None:
    asyncio.get_running_loop().set_exception_handler(note_loop_trouble)
    GuardedProtocol.max_connections = settings.limits.max_connections or most_connections()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        backlog=BACKLOG,
        timeout_graceful_shutdown=FLUSH_S,
        timeout_keep_alive=settings.limits.idle_connection_s,
        http=GuardedProtocol,
        ws="none",
    )
    config.load()
    config.ssl = None if tls is None else tls.context
    server = Server(config)
    metrics = MetricsServer(served.observer.metrics)
    if scraped is not None:
        log.info("metrics on %s/metrics", _url(scraped))
        scraping = asyncio.create_task(metrics.serve([scraped]))
    watching = [asyncio.create_task(watch.run()) for watch in watches if watch]
    lost: asyncio.Future[EngineError] = asyncio.get_running_loop().create_future()
    scheme = "http" if tls is None else "https"
    log.info("listening on %s, loading %s", _url(listener, scheme), settings.model)
    loading = asyncio.create_task(_load(served, settings, launched, lost))
    serving = asyncio.create_task(server.serve([listener]))
    stopping = asyncio.create_task(server.told_to_stop.wait())
    ends: set[asyncio.Future[Any]] = {serving, stopping, lost}
    await asyncio.wait({loading, *ends}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and loading.exception() is None:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if stopping.done() and not server.force_exit:
        served.draining = True
        draining = asyncio.create_task(drain(served, settings.limits.grace_period_s))
        await asyncio.wait({draining, *(ends - {stopping})}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
    for task in (loading, stopping, *watching):
        task.cancel()
    # A load that was interrupted leaves no process behind before this ends.
    [outcome] = await asyncio.gather(loading, return_exceptions=True)
    server.leave()
    metrics.leave()
    await serving
    if scraped is not None:
        await scraping
    if isinstance(outcome, Exception):
        raise outcome
    if lost.done():
        raise lost.result()
    log.info("stopped")


async def drain(served: ServedModel, grace_period_s: float) -> None:
    """Wait until the requests that were let in have ended; end the rest after the grace period."""
    admission = served.admission
    log.info(
        "stopping: no new requests, %d running ones have %g s",
        admission.num_admitted,
        grace_period_s,
    )
    end = time.monotonic() + grace_period_s
    while admission.num_admitted and time.monotonic() < end:
        await asyncio.sleep(DRAIN_POLL_S)
    if admission.num_admitted:
        log.warning("the grace period is over: ending %d requests", admission.num_admitted)
        served.end_all(
            EngineError(
                f"the server stops, and this request was not finished within the grace period of "
                f"{grace_period_s:g} s"
            )
        )


class Server(uvicorn.Server):
    """Uvicorn, which only notes that it was told to stop: new requests hear that it drains."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.told_to_stop = asyncio.Event()
        self._leaving = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def leave(self) -> None:
        """Close the connections and end; also if it has not begun yet."""
        self._leaving.set()

    async def main_loop(self) -> None:
        """Keep the house once a second instead of ten times: an idle server sleeps."""
        leaving = asyncio.create_task(self._leaving.wait())
        while not leaving.done():
            await self.on_tick(0)
            await asyncio.wait({leaving}, timeout=1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's, which lets the application end only if it was told once to stop."""
        await super().shutdown(sockets)
        await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second stops at once."""
        if self.told_to_stop.is_set():
            self.force_exit = True
            self._loop.call_soon_threadsafe(self.leave)
        self._loop.call_soon_threadsafe(self.told_to_stop.set)


async def _load(
    served: ServedModel,
    settings: ServerSettings,
    launched: Launched | None,
    lost: "asyncio.Future[EngineError]",
) -> None:
    started_s = time.monotonic() if launched is None else launched.since_s

    def lose(error: EngineError) -> None:
        if not lost.done():
            lost.set_result(error)

    client: SupervisedEngine | RayFleetClient
    if settings.replicas is not None:
        client = await _join_fleet(settings, settings.replicas)
    else:
        client = await SupervisedEngine.create(
            settings.model,
            settings.options,
            supervision=SupervisorOptions(step_timeout_s=settings.limits.step_timeout_s),
            launched=launched,
            request_timeout_s=settings.limits.request_timeout_s,
            on_failure=lose,
        )
    try:
        await load_adapters(client.adapters, served, settings)
    except BaseException:
        await client.close()
        raise
    served.set_ready(client)
    for line in client.plan_lines:
        log.info("%s", line)
    log.info("ready after %.1f s, as %s", time.monotonic() - started_s, ", ".join(served.names))


async def _join_fleet(
    settings: ServerSettings, replicas: tuple[int, int | None]
) -> "RayFleetClient":
    from loire.fleet.ray.auth import require_token

    require_token()
    try:
        from loire.fleet.ray.front import join_fleet
    except ImportError as error:
        raise ConfigError(
            f"replicas on Ray need an extra, pip install 'loire[ray]': {error}"
        ) from error
    from loire.fleet.ray.args import from_options

    timeout_s = settings.replica_timeout_s
    more = {} if timeout_s is None else {"replica_timeout_s": timeout_s}
    args = from_options(settings.model, settings.options, replicas, **more)
    return await join_fleet(args, settings.limits.request_timeout_s)


def _url(listener: socket.socket, scheme: str = "http") -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
