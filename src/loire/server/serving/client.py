"""The engine as one call sees it: tenants share it, but not each other's prefixes or limits.

Whether a prompt's beginning is in the prefix cache can be told from the time to its first token.
Each tenant therefore has a salt of its own, so that nobody can find out what others have asked.
"""

import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import TypeVar, cast

from starlette.requests import Request

from loire.base.config import EngineConfig
from loire.base.errors import LoireError
from loire.base.outputs import RequestOutput
from loire.engine.frontend import Frontend
from loire.engine.requests import Origin, Submission
from loire.server.access.admission import Ticket, get_ticket
from loire.server.access.caller import Caller, get_caller, get_use
from loire.server.access.rates import Use
from loire.server.serving.answer_bytes import HeldAnswer
from loire.server.serving.served import ServedModel
from loire.server.serving.served_engine import ServedEngine
from loire.server.web.call import Call, get_call
from loire.server.web.errors import ApiError

T = TypeVar("T")


def tenant_salt(tenant: str, cache_salt: str) -> str:
    """The prefix cache's salt: of the tenant, and within it of the requests with this cache_salt.

    Without keys there are no tenants, and the request's own salt is all there is.
    """
    if not tenant:
        return cache_salt
    return hashlib.sha256(json.dumps([tenant, cache_salt]).encode()).hexdigest()


class CallClient:
    """The engine for one call: its requests count in the queue, for its caller, and are watched.

    Made by admit(), or by client_of() for a call that joins no queue.
    """

    def __init__(
        self,
        engine: ServedEngine,
        served: ServedModel,
        caller: Caller,
        use: Use,
        ticket: Ticket,
        call: Call,
        adapter: str = "",
        model: str = "",
    ) -> None:
        """adapter: which one the call is for, by its content. model: the name that it asked for."""
        self._engine = engine
        self._preparations = served.preparations
        self._abandoned: Future[None] = Future()
        self._admission = served.admission
        self._observer = served.observer
        self._caller = caller
        self._use = use
        self._ticket = ticket
        self._call = call
        self.held = HeldAnswer(served.held_answers, caller.tenant)
        """What the answer holds, for as long as the call lasts."""
        ticket.at_end(self.held.end)
        self._adapter = adapter
        self._adapter_name = model if adapter else ""

    @property
    def config(self) -> EngineConfig:
        """The settled configuration."""
        return self._engine.config

    @property
    def frontend(self) -> Frontend:
        """Tokenizer, chat template and request checks."""
        return self._engine.frontend

    def next_id(self) -> str:
        """An id that no request of this engine has had."""
        return self._engine.next_id()

    def origin(self, cache_salt: str = "", priority: int = 0) -> Origin:
        """Where the call's requests come from: its tenant, under its salt and its least priority.

        Raises ApiError: 403 if they would go before those of other tenants.
        """
        caller = self._caller
        if priority < 0 and caller.tenant and not caller.admin:
            raise ApiError(
                403,
                "a priority below 0 goes before the requests of all tenants, and needs an admin "
                "key: leave it out, or ask for 0 or more",
                param="priority",
                code="admin_key_needed",
            )
        least = caller.least_priority
        return Origin(
            cache_salt=tenant_salt(caller.tenant, cache_salt),
            priority=priority if least is None else max(priority, least),
            tenant=caller.tenant,
            abandoned=self._abandoned,
            adapter=self._adapter,
        )

    async def prepare(self, request: Request, work: Callable[[], T]) -> T:
        """What the work returns, which makes the call's requests, on a thread.

        If the client goes, what waits under `origin` ends. Raises as Preparations.run() does.
        """
        run = self._preparations.run
        return await run(self._caller, request.receive, work, self._abandoned)

    def admit(self, submissions: Sequence[Submission]) -> None:
        """Let all requests of the call into the queue, and take their sequences and tokens from
        its limits.

        Raises ApiError: 429 if the queue or the tenant's share of it has no room for them, or if
        they have more sequences or tokens than the tenant has left.
        """
        self.take_place(sum(submission.request.params.n for submission in submissions))
        num_tokens = sum(len(submission.request.prompt_token_ids) for submission in submissions)
        self._use.grow(_num_sequences(submissions))
        try:
            self._caller.meter.take_prompt(num_tokens)
        except ApiError:
            self._use.give_back()
            raise

    def take_place(self, num_sequences: int) -> None:
        """Let the call in with so many sequences. Raises ApiError: 429, or 400 if it never can."""
        tenant = self._caller.tenant
        waiting = self._observer.waiting_of(tenant)
        self._admission.admit(self._ticket, self._engine.link, tenant, waiting, num_sequences)

    async def stream(self, submission: Submission) -> AsyncGenerator[RequestOutput, None]:
        """Run a request of `origin` at its tenant's expense; outputs hold what is new."""
        outputs = cast("AsyncGenerator[RequestOutput, None]", self._engine.stream(submission))
        self._ticket.joins_queue(submission.request.params.n)
        watch = self._observer.watch(submission, self._call, self._adapter_name)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    watch.see(output)
                    num_tokens = sum(len(delta.token_ids) for delta in output.outputs)
                    self._caller.meter.take_output(num_tokens)
                    yield output
        except LoireError as error:
            watch.fail(error)
            raise
        finally:
            watch.end()


def admit(request: Request, model: str) -> CallClient:
    """The engine that serves a model, for a call that may join its queue now.

    Raises ApiError: as client_of(), and 429 if the queue or the tenant's share of it is full.
    """
    client = client_of(request, model)
    client.take_place(1)
    return client


def client_of(request: Request, model: str) -> CallClient:
    """The engine that serves a model, for a call that makes requests and may not send them.

    Raises ApiError: 404 if there is no such model, 503 while it takes no requests.
    """
    scope = request.scope
    served: ServedModel = request.app.state.served
    caller = get_caller(scope)
    engine = served.engine_for(model, caller)
    return CallClient(
        engine,
        served,
        caller,
        get_use(scope),
        get_ticket(scope),
        get_call(scope),
        served.adapter_of(model, caller),
        model,
    )


async def prepare(request: Request, work: Callable[[], T]) -> T:
    """What the work returns, on a thread, for a call that joins no queue.

    Raises as Preparations.run() does.
    """
    served: ServedModel = request.app.state.served
    return await served.preparations.run(get_caller(request.scope), request.receive, work)


def _num_sequences(submissions: Sequence[Submission]) -> int:
    """That a call has the engine write. Texts to embed are one together: they are prompts, which
    the limit on tokens bounds."""
    return max(sum(s.request.params.n for s in submissions if not s.request.params.pooling), 1)
