"""Virtual token counters: who has been served least comes next.

Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each tenant has a counter of
the tokens it was served, weighted by what they cost. The waiting tenant with the least goes first.
A tenant that comes back after a pause is lifted to the least of those who wait, so that it has no
credit for the time when it asked for nothing. Two tenants that always have requests waiting are
then served the same, but for a constant that does not grow.

One call can bring a hundred sequences, which would keep all slots as long as they run; so slots are
shared, too, while another tenant waits.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

INPUT_WEIGHT = 1
OUTPUT_WEIGHT = 2
"""An output token takes a step of its own, an input token a share of one."""


class Owned(Protocol):
    """What of a tenant runs or waits."""

    @property
    def tenant(self) -> str:
        """On whose behalf it is computed."""
        ...

    @property
    def priority(self) -> int:
        """Lower is earlier."""
        ...


Running = TypeVar("Running", bound=Owned)


def surplus_of(running: Sequence[Running], newcomer: Owned) -> Running | None:
    """Who gives up its slot for a newcomer; None if nobody has to.

    It is the last of the tenant that has most slots, if those are at least two more than the
    newcomer's tenant has; counted among equal priorities. running: in order.
    """
    equals = [one for one in running if one.priority == newcomer.priority]
    slots = Counter(one.tenant for one in equals)
    if not slots:
        return None
    most = max(slots.values())
    if most < slots[newcomer.tenant] + 2:
        return None
    return next(one for one in reversed(equals) if slots[one.tenant] == most)


class VirtualCounters:
    """The counters of all tenants that were ever served."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._last_to_leave: str | None = None

    def served(self, tenant: str) -> int:
        """Weighted tokens, credit for pauses taken away."""
        return self._served.get(tenant, 0)

    def charge(self, tenant: str, *, num_input: int = 0, num_output: int = 0) -> None:
        """Tokens were computed for a tenant."""
        weighted = INPUT_WEIGHT * num_input + OUTPUT_WEIGHT * num_output
        self._served[tenant] = self.served(tenant) + weighted

    def comes(self, tenant: str, waiting: Iterable[str]) -> None:
        """A tenant that has no request waiting gets one. waiting: the tenants that have some."""
        others = [self.served(other) for other in waiting]
        if not others and self._last_to_leave is not None:
            others = [self.served(self._last_to_leave)]
        self._served[tenant] = max(self.served(tenant), min(others, default=0))

    def leaves(self, tenant: str) -> None:
        """The last waiting request of a tenant was admitted or given up."""
        self._last_to_leave = tenant
