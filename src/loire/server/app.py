"""The web application, over a served model that may still be loading."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from loire import __version__
from loire.checkpoint.store import loire_home
from loire.server import (
    admin,
    batches,
    chat,
    completions,
    embeddings,
    files,
    health,
    live,
    messages,
    metrics_route,
    models,
    page,
    responses,
    tokenize,
)
from loire.server.access import OPEN_ACCESS, Access
from loire.server.admission import Tickets
from loire.server.batch_queue import BatchQueue
from loire.server.calls import CallLog
from loire.server.data_folder import DataFolder
from loire.server.errors import add_error_handlers
from loire.server.key_guard import KeyGuard
from loire.server.limits import BodyLimit
from loire.server.queue_guard import QueueGuard
from loire.server.rate_guard import RateGuard
from loire.server.response_store import ResponseStore
from loire.server.served import ServedModel
from loire.server.spans import Spans


def create_app(
    served: ServedModel,
    access: Access = OPEN_ACCESS,
    data_dir: Path | None = None,
    spans: Spans | None = None,
) -> FastAPI:
    """The routes for one served model. Shutting the app down stops its engine.

    data_dir: where files and batches are kept; by default data in LOIRE_HOME. spans: told of each
    call.
    """
    data = DataFolder(data_dir or loire_home() / "data")
    queue = BatchQueue(data, served)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue.start()
        try:
            yield
        finally:
            await queue.close()
            await served.close()
            data.close()
            if spans is not None:
                spans.close()

    app = FastAPI(
        title="Loire",
        summary="The OpenAI API over models of your own",
        version=__version__,
        lifespan=lifespan,
    )
    app.state.served = served
    app.state.data = data
    app.state.batches = queue
    app.state.responses = ResponseStore()
    for module in (
        chat,
        completions,
        embeddings,
        messages,
        responses,
        tokenize,
        files,
        batches,
        models,
        health,
        live,
        page,
        admin,
        metrics_route,
    ):
        app.include_router(module.router)
    # The last one added is the first to see a request.
    app.add_middleware(Tickets, admission=served.admission)
    app.add_middleware(BodyLimit)
    app.add_middleware(QueueGuard, served)
    app.add_middleware(RateGuard)
    app.add_middleware(KeyGuard, access)
    app.add_middleware(CallLog, served.observer.metrics, spans)
    add_error_handlers(app)
    return app
