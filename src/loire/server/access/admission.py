"""A bounded queue: beyond it, a request is refused at once, before its body is read.

A request waits from the moment it is let in until the engine computes something of it. On its way
to the engine's own queue it is counted by its ticket, from then on by the engine.
"""

from collections import Counter
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from loire.server.access.limits import ServerLimits
from loire.server.web.errors import ApiError

_TICKET = "loire.ticket"

RETRY_AFTER_S = 1

TENANT_SHARE = 4
"""A tenant may have that many times as much waiting as there is room left. One alone can so fill
four fifths of the queue, several less each, and there is always room for who comes next. (Choudhury
and Hahne 1998, Dynamic queue length thresholds for shared-memory packet switches.)
"""


class Queue(Protocol):
    """The engine's queue."""

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing is computed yet."""
        ...

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of those."""
        ...


class Ticket:
    """One HTTP request that may want the engine."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._admitted = False
        self._preparing = False
        self._tenant = ""

    def admit(self, tenant: str) -> None:
        """It has been let in, and is on its way to the queue."""
        if not self._admitted:
            self._admitted = self._preparing = True
            self._tenant = tenant
            self._admission.num_admitted += 1
            self._admission.num_preparing += 1
            self._admission.num_preparing_of[tenant] += 1

    def joins_queue(self) -> None:
        """The engine counts it from now on."""
        if self._preparing:
            self._preparing = False
            self._admission.num_preparing -= 1
            self._admission.num_preparing_of[self._tenant] -= 1

    def end(self) -> None:
        """It has been answered, or its client is gone."""
        self.joins_queue()
        if self._admitted:
            self._admitted = False
            self._admission.num_admitted -= 1


class Admission:
    """Counts the requests that were let in, and refuses those that find the queue full."""

    def __init__(self, limits: ServerLimits | None = None) -> None:
        self.limits = limits or ServerLimits()
        self.num_admitted = 0
        """Requests let in whose answer is not complete."""
        self.num_preparing = 0
        """Those of them that are not in the engine's queue yet."""
        self.num_preparing_of: Counter[str] = Counter()
        """The same by tenant."""
        self.num_refused = 0

    def admit(self, ticket: Ticket, queue: Queue, tenant: str, of_tenant: Queue) -> None:
        """Let a request in. Raises as check() does."""
        self.check(queue, tenant, of_tenant)
        ticket.admit(tenant)

    def check(self, queue: Queue, tenant: str, of_tenant: Queue) -> None:
        """Raises ApiError (429) if the queue, or the tenant's share of it, is full.

        tenant: empty if there are no tenants, and nobody to share with.
        """
        limits = self.limits
        num_requests = queue.num_waiting + self.num_preparing
        if num_requests >= limits.max_queued_requests:
            self._refuse(f"{num_requests:,} requests", f"{limits.max_queued_requests:,}")
        if queue.num_waiting_tokens >= limits.max_queued_tokens:
            self._refuse(
                f"requests with {queue.num_waiting_tokens:,} tokens",
                f"{limits.max_queued_tokens:,}",
            )
        if tenant:
            self._check_share(tenant, of_tenant, num_requests, queue.num_waiting_tokens)

    def _check_share(
        self, tenant: str, of_tenant: Queue, num_requests: int, num_tokens: int
    ) -> None:
        own = of_tenant.num_waiting + self.num_preparing_of[tenant]
        share = TENANT_SHARE * (self.limits.max_queued_requests - num_requests)
        if own >= share:
            self._refuse(f"{own:,} requests of tenant {tenant!r}", f"{share:,} at this moment")
        share = TENANT_SHARE * (self.limits.max_queued_tokens - num_tokens)
        if of_tenant.num_waiting_tokens >= share:
            self._refuse(
                f"requests of tenant {tenant!r} with {of_tenant.num_waiting_tokens:,} tokens",
                f"{share:,} at this moment",
            )

    def _refuse(self, waiting: str, limit: str) -> None:
        self.num_refused += 1
        raise ApiError(
            429,
            f"the queue is full: {waiting} are waiting, the limit is {limit}; try again later",
            code="queue_full",
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
