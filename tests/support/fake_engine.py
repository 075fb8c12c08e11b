"""An engine without a model: it replies what it was told to, through the real ledger."""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from loire.base.cache_geometry import one_group
from loire.base.config import EngineConfig
from loire.base.errors import EngineError
from loire.base.messages import AdapterCounts, SequenceUpdate
from loire.base.outputs import RequestOutput
from loire.base.step import StepRecord, TokenLogprobs
from loire.checkpoint.open import open_checkpoint
from loire.engine.frontend import Frontend
from loire.engine.ledger import RequestLedger
from loire.engine.requests import Submission
from loire.server.host.app import create_app
from loire.server.host.connections import GuardedProtocol
from loire.server.host.run import bind
from loire.server.serving.served import ServedModel

WINDOW = 256
NAME = "tiny"


class FakeEngine:
    """Replies token by token.

    gate: requests wait in the queue until it is set; pause: they wait after the first token.
    failure: ends a request after its first token; death: the stream raises after it.
    """

    def __init__(
        self,
        model: Path,
        reply: str = "Hello there",
        *,
        at_once: bool = False,
        window: int = WINDOW,
    ) -> None:
        self.window = window
        self.frontend = Frontend(open_checkpoint(model), window)
        self.reply = reply
        self.at_once = at_once
        self.alive = True
        self.num_restarts = 0
        self.adapters = AdapterCounts()
        self.listeners: list[Callable[[StepRecord], None]] = []
        self.is_ready = True
        self.ended_with: EngineError | None = None
        self.closed = False
        self.gate: asyncio.Event | None = None
        self.pause: asyncio.Event | None = None
        self.delay_s = 0.0
        """Before the first token."""
        self.failure: str | None = None
        self.death: Exception | None = None
        self.running: list[str] = []
        self.records: list[StepRecord] = []
        self.submissions: list[Submission] = []
        self.began = asyncio.Event()
        self._numbers = itertools.count()

    @property
    def config(self) -> EngineConfig:
        return EngineConfig(
            model=NAME,
            dtype="float32",
            kv_cache_dtype="float32",
            device="cpu",
            max_model_len=self.window,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            geometry=one_group(16, 512),
            num_blocks=64,
            enable_prefix_caching=True,
            policy="paged",
            reserve="max-tokens",
            pipeline_depth=1,
            seed=None,
        )

    @property
    def link(self) -> "FakeEngine":
        return self

    @property
    def num_requests(self) -> int:
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        return len(self.running) if self.gate is not None else 0

    @property
    def num_waiting_sequences(self) -> int:
        return self.num_waiting

    @property
    def num_waiting_tokens(self) -> int:
        return 10 * self.num_waiting

    @property
    def blocks_in_use(self) -> int:
        return 2 * len(self.running)

    def watch_steps(self, listener: Callable[[StepRecord], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def end_all(self, error: EngineError) -> None:
        self.ended_with = error

    def next_id(self) -> str:
        return f"request-{next(self._numbers)}"

    async def close(self) -> None:
        self.closed = True

    async def stream(self, submission: Submission) -> AsyncIterator[RequestOutput]:
        request_id = submission.request.request_id
        self.running.append(request_id)
        self.submissions.append(submission)
        try:
            self.began.set()
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(self.delay_s)
            ledger = RequestLedger(submission, self.frontend.tokenizer)
            for number, update in enumerate(self._updates(submission)):
                if number == 1 and self.pause is not None:
                    await self.pause.wait()
                if number == 1 and self.death is not None:
                    raise self.death
                news = ledger.apply(update, time.monotonic())
                if news is not None:
                    yield news[0]
                if not self.at_once:
                    await asyncio.sleep(0)
        finally:
            self.running.remove(request_id)

    def _updates(self, submission: Submission) -> list[SequenceUpdate]:
        params = submission.request.params
        token_ids = self.frontend.tokenizer.encode(self.reply)[: params.max_tokens]
        complete = params.max_tokens is None or len(token_ids) < params.max_tokens
        updates = []
        if params.prompt_logprobs is not None:
            prompt = submission.request.prompt_token_ids[1:]
            updates.append(self._update(submission, 0, prompt_logprobs=prompt))
        for position, token_id in enumerate(token_ids):
            last = position == len(token_ids) - 1
            for choice in range(params.n):
                finish = ("stop" if complete else "length") if last else None
                updates.append(self._update(submission, choice, token_id, finish))
        if self.failure is not None:
            request_id = submission.request.request_id
            updates[1:] = [SequenceUpdate(request_id, 0, finish_reason="error", error=self.failure)]
        return updates

    def _update(
        self,
        submission: Submission,
        choice: int,
        token_id: int | None = None,
        finish: Any = None,
        prompt_logprobs: tuple[int, ...] = (),
    ) -> SequenceUpdate:
        params = submission.request.params
        return SequenceUpdate(
            submission.request.request_id,
            choice,
            token_ids=() if token_id is None else (token_id,),
            logprobs=(_logprobs(token_id, params.logprobs),)
            if token_id is not None and params.logprobs is not None
            else (),
            prompt_logprobs=tuple(
                _logprobs(token, params.prompt_logprobs or 0) for token in prompt_logprobs
            ),
            finish_reason=finish,
            num_cached_tokens=16,
        )


def _logprobs(token_id: int, count: int) -> TokenLogprobs:
    """The token came second; the first was the id after it, the last is impossible."""
    ids = (token_id, token_id + 1, token_id, 4)[: count + 1]
    return TokenLogprobs(ids, (-1.0, -0.5, -1.0, float("-inf"))[: count + 1], 2)


def app_over(engine: FakeEngine | None) -> FastAPI:
    """An app over this engine (None: still loading), which has two names."""
    return create_app(ServedModel([NAME, "alias/of-it"], engine))


def call(engine: FakeEngine | None, method: str, path: str, **request: Any) -> httpx.Response:
    """One request to an app of its own over this engine."""
    return ask(app_over(engine), method, path, **request)


def ask(app: FastAPI, method: str, path: str, **request: Any) -> httpx.Response:
    """One request to an app."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


def events(response: httpx.Response) -> list[Any]:
    """The parsed events of a stream; the last one of a complete stream is "[DONE]"."""
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    payloads = [block.removeprefix("data: ") for block in blocks]
    return [data if data == "[DONE]" else json.loads(data) for data in payloads]


class Connection:
    """One request over plain ASGI, whose client can go away when the test says so."""

    def __init__(self, engine: FakeEngine, path: str, body: dict[str, Any]) -> None:
        self.app = create_app(ServedModel([NAME], engine))
        self.path = path
        self.gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.wrote = asyncio.Event()
        self._body: bytes | None = json.dumps(body).encode()

    async def run(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "scheme": "http",
            "server": ("test", 80),
            "client": ("test", 1),
        }
        await self.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        if message.get("body"):
            self.wrote.set()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an async test, with a limit on its time."""

    async def limited() -> None:
        await asyncio.wait_for(test(), 120)

    asyncio.run(limited())


DEATH = EngineError("the engine stopped: ValueError: for the test")


@contextmanager
def serving(engine: FakeEngine) -> Iterator[str]:
    """The address of the app, served on a thread: for clients that bring their own HTTP."""
    listener = bind("127.0.0.1", 0)
    app = create_app(ServedModel([NAME], engine))
    config = uvicorn.Config(app, log_config=None, lifespan="on", http=GuardedProtocol, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def endpoints(app: Any) -> Iterator[tuple[str, str]]:
    """(method, path) of all routes, those of included routers too, whatever FastAPI calls them."""
    for route in app.routes:
        router = getattr(route, "original_router", None)
        if router is not None:
            yield from endpoints(router)
        else:
            assert route.path.startswith("/"), route
            for method in getattr(route, "methods", None) or {"GET"}:
                yield method, route.path
