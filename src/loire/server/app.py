"""The web application, over a served model that may still be loading."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from loire import __version__
from loire.server import chat, completions, health, models, page
from loire.server.errors import add_error_handlers
from loire.server.key_guard import KeyGuard
from loire.server.keys import NO_KEYS, KeyRing
from loire.server.limits import BodyLimit
from loire.server.served import ServedModel


def create_app(
    served: ServedModel, ring: KeyRing = NO_KEYS, *, public_metrics: bool = False
) -> FastAPI:
    """The routes for one served model. Shutting the app down stops its engine.

    ring: the keys that open it. public_metrics: /metrics needs none.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await served.close()

    app = FastAPI(
        title="Loire",
        summary="The OpenAI API over models of your own",
        version=__version__,
        lifespan=lifespan,
    )
    app.state.served = served
    for module in (chat, completions, models, health, page):
        app.include_router(module.router)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimit)
    app.add_middleware(KeyGuard, ring, public_metrics=public_metrics)
    add_error_handlers(app)
    return app
