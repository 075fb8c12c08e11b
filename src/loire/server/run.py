"""`serve`: a server that answers at once and takes requests as soon as its model is loaded.

The socket is bound before anything else, so that a taken port is told in the first moment; then
/health answers 503 while the model loads on a thread of its own, and 200 from then on.
"""

import asyncio
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from loire.api import AsyncLLM
from loire.base.errors import ConfigError
from loire.server.access import AccessOptions
from loire.server.app import create_app
from loire.server.served import ServedModel

log = logging.getLogger("loire.server")

SHUTDOWN_S = 30
"""Requests in progress may take that long to end when the server is told to stop."""

BACKLOG = 2048
"""Connections that may wait to be accepted; a whole load may arrive at once."""


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    served_model_names: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    access: AccessOptions | None = None,
) -> int:
    """Serve a model until SIGTERM or SIGINT; 0 after a clean end.

    model, options: as for AsyncLLM. port: 0 takes a free one; the log says which. Raises
    ConfigError if the address cannot be bound, or should not be without keys, and whatever
    loading the model raises.
    """
    _log_to_stderr()
    settled = (access or AccessOptions()).settle(host)
    listener = bind(host, port)
    served = ServedModel(served_model_names or (model,))
    app = create_app(served, settled)
    try:
        asyncio.run(_serve(listener, app, served, model, options or {}))
    finally:
        listener.close()
    return 0


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens: clients that connect now are answered soon.

    Raises ConfigError if the address cannot be bound.
    """
    if not 0 <= port < 2**16:
        raise ConfigError(f"the port must be between 0 and 65535, but is {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another --port "
            f"(0 takes a free one) or --host"
        ) from error
    return listener


async def _serve(
    listener: socket.socket,
    app: FastAPI,
    served: ServedModel,
    model: str,
    options: Mapping[str, Any],
) -> None:
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            backlog=BACKLOG,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
    )
    _stop_on_sigterm(server)
    log.info("listening on %s, loading %s", _url(listener), model)
    loading = asyncio.create_task(_load(served, model, options))
    serving = asyncio.create_task(server.serve([listener]))
    await asyncio.wait({loading, serving}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and loading.exception() is not None:
        server.should_exit = True
    await serving
    if loading.done():
        loading.result()
    else:
        loading.cancel()
    log.info("stopped")


async def _load(served: ServedModel, model: str, options: Mapping[str, Any]) -> None:
    started = time.perf_counter()
    llm = await _on_daemon_thread(lambda: AsyncLLM(model, **options))
    served.set_ready(llm)
    for line in llm.engine.plan_lines:
        log.info("%s", line)
    log.info("ready after %.1f s, as %s", time.perf_counter() - started, ", ".join(served.names))


async def _on_daemon_thread(work: Callable[[], AsyncLLM]) -> AsyncLLM:
    """The result of blocking work, on a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[AsyncLLM] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        try:
            outcome, set_outcome = work(), future.set_result
        except BaseException as error:  # noqa: BLE001  raised again where it is awaited
            loop.call_soon_threadsafe(settle, future.set_exception, error)
        else:
            loop.call_soon_threadsafe(settle, set_outcome, outcome)

    threading.Thread(target=run, name="loire-load", daemon=True).start()
    return await future


def _stop_on_sigterm(server: uvicorn.Server) -> None:
    """End cleanly, with status 0: uvicorn would die of the signal once it has shut down."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_to_stderr() -> None:
    """One line per stage from Loire; from uvicorn only what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("loire", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
