"""The web application, over a served model that may still be loading."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware

from loire import __version__
from loire.checkpoint.store import loire_home
from loire.server.access.admission import Admission, Tickets
from loire.server.access.key_guard import KeyGuard
from loire.server.access.name_guard import NameGuard
from loire.server.access.options import OPEN_ACCESS, Access
from loire.server.access.queue_guard import QueueGuard
from loire.server.access.rate_guard import RateGuard
from loire.server.anthropic import messages
from loire.server.batches import files
from loire.server.batches import routes as batches
from loire.server.batches.data_folder import DataFolder
from loire.server.batches.queue import BatchQueue
from loire.server.host import page
from loire.server.observe.audit_log import AuditLog
from loire.server.observe.call_log import CallLog
from loire.server.observe.spans import Spans
from loire.server.openai import chat, completions, embeddings, models, render, tokenize
from loire.server.openai.responses import routes as responses
from loire.server.openai.responses.store import ResponseStore
from loire.server.operations import adapters, admin, health, live
from loire.server.operations import metrics as metrics_route
from loire.server.serving.served import ServedModel
from loire.server.web.body_limit import BodyLimit
from loire.server.web.errors import add_error_handlers
from loire.server.web.ignored import IgnoredFields
from loire.server.web.json_answer import large_answer
from loire.server.web.plain_calls import PlainCalls
from loire.server.web.policy_headers import PolicyHeaders


def create_app(
    served: ServedModel,
    access: Access = OPEN_ACCESS,
    data_dir: Path | None = None,
    spans: Spans | None = None,
    audit: AuditLog | None = None,
) -> FastAPI:
    """The routes for one served model. Shutting the app down stops its engine.

    data_dir: where files and batches are kept; by default data in LOIRE_HOME. spans: and audit:
    told of each call.
    """
    data_dir = data_dir or loire_home() / "data"
    data = DataFolder(data_dir)
    stored_responses = ResponseStore(data_dir)
    queue = BatchQueue(data, served, background_app(served), access.ring)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue.start()
        try:
            yield
        finally:
            await queue.close()
            await served.close()
            data.close()
            stored_responses.close()
            if spans is not None:
                spans.close()
            if audit is not None:
                audit.close()

    app = FastAPI(
        title="Loire",
        summary="The OpenAI API over models of your own",
        version=__version__,
        lifespan=lifespan,
        # FastAPI makes its description on the event loop, for half a second; pages over it load
        # scripts from another host.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )

    async def describe(request: Request) -> Response:
        return await large_answer(app.openapi)

    app.add_route("/openapi.json", describe, include_in_schema=False)
    app.state.served = served
    app.state.data = data
    app.state.batches = queue
    app.state.responses = stored_responses
    app.state.keep_alive_s = served.admission.limits.keep_alive_s
    for module in (
        chat,
        completions,
        embeddings,
        messages,
        responses,
        render,
        tokenize,
        files,
        batches,
        models,
        health,
        live,
        page,
        adapters,
        admin,
        metrics_route,
    ):
        app.include_router(module.router)
    # The last one added is the first to see a request.
    app.add_middleware(IgnoredFields)
    app.add_middleware(Tickets, admission=served.admission)
    app.add_middleware(BodyLimit)
    app.add_middleware(QueueGuard, served.check_queue)
    app.add_middleware(RateGuard)
    app.add_middleware(KeyGuard, access)
    if access.names.pages:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.names.pages,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(NameGuard, access.names)
    app.add_middleware(CallLog, served.observer.metrics, spans, audit)
    app.add_middleware(PolicyHeaders)
    app.add_middleware(PlainCalls)
    add_error_handlers(app)
    return app


def background_app(served: ServedModel) -> FastAPI:
    """The routes that batches may use: no keys, no limits, as those held for the batch."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.served = served
    # Thousands of responses would push those out that somebody goes on from.
    app.state.responses = ResponseStore()
    for module in (chat, completions, embeddings, responses):
        app.include_router(module.router)
    # Their tickets are counted apart: a server that drains does not wait for batches.
    app.add_middleware(Tickets, admission=Admission())
    add_error_handlers(app)
    return app
