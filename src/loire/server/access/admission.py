"""A bounded queue: beyond it, a request is refused at once, before its body is read.

A request waits from the moment it is let in until the engine computes something of it. On its way
to the engine's own queue it is counted by the ticket of its call, from then on by the engine. What
counts are sequences: a request with n = 128 takes as many places as 128 of one.
"""

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from loire.server.access.limits import ServerLimits
from loire.server.web.errors import ApiError

_TICKET = "loire.ticket"

QUEUE_FULL = "queue_full"
"""The code of a refusal."""

RETRY_AFTER_S = 1

TENANT_SHARE = 4
"""A tenant may have that many times as much waiting as there is room left. One alone can so fill
four fifths of the queue, several less each, and there is always room for who comes next. (Choudhury
and Hahne 1998, Dynamic queue length thresholds for shared-memory packet switches.)
"""


class Queue(Protocol):
    """The engine's queue."""

    @property
    def num_waiting_sequences(self) -> int:
        """Of the requests of which nothing is computed yet."""
        ...

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of these requests."""
        ...


class Ticket:
    """One HTTP call that may want the engine, and its sequences on their way to the queue."""

    def __init__(self, admission: "Admission") -> None:
        self.num_preparing = 0
        """Sequences that were let in and are not in the engine's queue yet."""
        self.admission = admission
        self._admitted = False
        self._tenant = ""
        self._last: list[Callable[[], None]] = []

    def at_end(self, work: Callable[[], None]) -> None:
        """To be done when the call has ended."""
        self._last.append(work)

    def admit(self, tenant: str, num_sequences: int) -> None:
        """The call has been let in with so many sequences."""
        if not self._admitted:
            self._admitted = True
            self._tenant = tenant
            self.admission.num_admitted += 1
        self._prepare(num_sequences - self.num_preparing)

    def joins_queue(self, num_sequences: int) -> None:
        """The engine counts a request with so many sequences from now on."""
        self._prepare(-min(num_sequences, self.num_preparing))

    def end(self) -> None:
        """The call has been answered, or its client is gone."""
        self._prepare(-self.num_preparing)
        while self._last:
            self._last.pop()()
        if self._admitted:
            self._admitted = False
            self.admission.num_admitted -= 1

    def _prepare(self, change: int) -> None:
        self.num_preparing += change
        self.admission.num_preparing += change
        self.admission.num_preparing_of[self._tenant] += change


class Admission:
    """Counts what was let in, and refuses calls that find the queue full."""

    def __init__(self, limits: ServerLimits | None = None) -> None:
        self.limits = limits or ServerLimits()
        self.num_admitted = 0
        """Calls let in whose answer is not complete."""
        self.num_preparing = 0
        """Their sequences that are not in the engine's queue yet."""
        self.num_preparing_of: Counter[str] = Counter()
        """The same by tenant."""
        self.num_refused = 0

    def admit(
        self, ticket: Ticket, queue: Queue, tenant: str, of_tenant: Queue, num_sequences: int = 1
    ) -> None:
        """Let a call in that brings so many sequences. Raises as check() does.

        A call is let in with one before its body is understood, and with all of them
        before they are sent to the engine.
        """
        # Tickets of batches are counted by an Admission of their own.
        num_preparing = ticket.num_preparing if ticket.admission is self else 0
        self.check(queue, tenant, of_tenant, num_sequences, num_preparing)
        ticket.admit(tenant, num_sequences)

    def check(
        self,
        queue: Queue,
        tenant: str,
        of_tenant: Queue,
        num_sequences: int = 1,
        num_preparing: int = 0,
    ) -> None:
        """Raises ApiError (429) if the queue, or the tenant's share of it, is full.

        tenant: empty if there are no tenants, and nobody to share with. num_sequences: n of each
        prompt, which must all find room, as if they came one after the other; 400 if they never
        can. num_preparing: how many of them are counted already.
        """
        limits = self.limits
        if num_sequences > limits.max_queued_requests:
            raise ApiError(
                400,
                f"this call brings {num_sequences:,} sequences (n of each prompt), but the queue "
                f"of this server holds {limits.max_queued_requests:,}: ask for fewer at a time",
                code="too_many_prompts",
            )
        brought = num_sequences - 1
        before = queue.num_waiting_sequences + self.num_preparing - num_preparing
        if before + brought >= limits.max_queued_requests:
            self._refuse(f"{before:,} sequences", f"{limits.max_queued_requests:,}", num_sequences)
        num_tokens = queue.num_waiting_tokens
        if num_tokens >= limits.max_queued_tokens:
            self._refuse(f"requests with {num_tokens:,} tokens", f"{limits.max_queued_tokens:,}")
        if not tenant:
            return
        own = of_tenant.num_waiting_sequences + self.num_preparing_of[tenant] - num_preparing
        share = TENANT_SHARE * (limits.max_queued_requests - before - brought)
        if own + brought >= share:
            waiting = f"{own:,} sequences of tenant {tenant!r}"
            self._refuse(waiting, f"{share:,} at this moment", num_sequences)
        share = TENANT_SHARE * (limits.max_queued_tokens - num_tokens)
        own = of_tenant.num_waiting_tokens
        if own >= share:
            waiting = f"requests of tenant {tenant!r} with {own:,} tokens"
            self._refuse(waiting, f"{share:,} at this moment")

    def _refuse(self, waiting: str, limit: str, num_sequences: int = 1) -> None:
        self.num_refused += 1
        brought = f", this call brings {num_sequences:,} more" if num_sequences > 1 else ""
        raise ApiError(
            429,
            f"the queue is full: {waiting} are waiting{brought}, the limit is {limit}; try again "
            f"later",
            code=QUEUE_FULL,
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )


class Tickets:
    """ASGI middleware: gives every HTTP request a ticket, and takes it back at the end."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ticket = scope[_TICKET] = Ticket(self._admission)
        try:
            await self._app(scope, receive, send)
        finally:
            ticket.end()


def get_ticket(scope: Scope) -> Ticket:
    """The ticket of a call."""
    ticket: Ticket = scope[_TICKET]
    return ticket
