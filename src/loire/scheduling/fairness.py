"""Virtual token counters: who has been served least comes next.

Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each tenant has a counter of
the tokens it was served, weighted by what they cost. The waiting tenant with the least goes first.
A tenant that comes back after a pause is lifted to the least of those who wait, so that it has no
credit for the time when it asked for nothing. Two tenants that always have requests waiting are
then served the same, but for a constant that does not grow.

One call can bring a hundred sequences, which would keep all slots as long as they run, a few that
fill the memory, or prompts that fill the steps; so slots, memory and steps are shared, too, while
there is another tenant.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

    @property
    def num_own_pages(self) -> int:
        """Pages of KV memory that it holds and shares with nobody who was there before it."""
        ...


Running = TypeVar("Running", bound=Owned)


def surplus_of(
    running: Sequence[Running], newcomer: Owned, coming: Sequence[Owned] = ()
) -> Running | None:
    """Who gives up its slot for a newcomer; None if nobody has to.

    It is the last of the tenant that has most slots, if those are at least two more than the
    newcomer's tenant has; counted among equal priorities. running: in order. coming: others who
    are about to have a slot.
    """
    equals = [one for one in running if one.priority == newcomer.priority]
    slots = Counter(one.tenant for one in equals)
    if not slots:
        return None
    own = slots[newcomer.tenant] + sum(
        one.tenant == newcomer.tenant and one.priority == newcomer.priority for one in coming
    )
    most = max(slots.values())
    if most < own + 2:
        return None
    return next(one for one in reversed(equals) if slots[one.tenant] == most)


def memory_surplus_of(
    running: Sequence[Running], newcomer: Owned, num_needed: int
) -> Running | None:
    """Who gives up its memory for a newcomer that finds none; None if nobody has to.

    It is the last of the tenant that holds most, if that tenant still holds no less afterwards than
    the newcomer's does then; counted among equal priorities. running: in order. num_needed: pages.
    """
    equals = [one for one in running if one.priority == newcomer.priority]
    held = _held(equals)
    if not held:
        return None
    richest = max(held, key=held.__getitem__)
    last = next(one for one in reversed(equals) if one.tenant == richest)
    left = held[richest] - last.num_own_pages
    gains = richest != newcomer.tenant and left >= held[newcomer.tenant] + num_needed
    return last if gains else None


def first_to_give_way(running: Sequence[Running], place: int) -> Running:
    """Who is preempted when one that runs finds no memory for its next tokens.

    Of the least urgent, the last of the tenant that holds most; but none of those before the one
    that needs it, and never the first of all while there is another. running: in order. place: of
    the one that needs it.
    """
    least = [one for one in running if one.priority == running[-1].priority]
    held = _held(least)
    after = running[max(place, 1) :] or running
    # Among equals the last: a set of names would be in any order.
    tenants = dict.fromkeys(one.tenant for one in reversed(after) if one in least)
    richest = max(tenants, key=held.__getitem__)
    return next(one for one in reversed(after) if one.tenant == richest)


def prefill_shares(wanted: Mapping[str, int], num_tokens: int) -> dict[str, int]:
    """How many of a step's tokens each tenant has for its prompts, of those that it wants.

    Half of them in equal parts, so that each one gets on; the other half to those who want least,
    so that a short prompt does not take as many steps as a long one beside it.
    """
    shares = {tenant: min(num_tokens // (2 * len(wanted)), n) for tenant, n in wanted.items()}
    left = num_tokens - sum(shares.values())
    for tenant in sorted(wanted, key=wanted.__getitem__):
        more = min(wanted[tenant] - shares[tenant], left)
        shares[tenant] += more
        left -= more
    return shares


def _held(sequences: Iterable[Owned]) -> "Counter[str]":
    """Pages by tenant."""
    held: Counter[str] = Counter()
    for one in sequences:
        held[one.tenant] += one.num_own_pages
    return held


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

    def comes(self, tenant: str, beside: Iterable[str]) -> None:
        """A tenant that has no request waiting gets one.

        beside: the tenants that have some, or, where none has, those that have some running. (The
        paper takes who left last then. A flood that has just been let in has been charged with all
        of its prompts: to be lifted to that would put a light tenant behind all others.)
        """
        others = [self.served(other) for other in beside]
        if not others and self._last_to_leave is not None:
            others = [self.served(self._last_to_leave)]
        self._served[tenant] = max(self.served(tenant), min(others, default=0))

    def leaves(self, tenant: str) -> None:
        """The last waiting request of a tenant was admitted or given up."""
        self._last_to_leave = tenant


class RecentTenants:
    """Who was there lately: as long as fewer than num_tokens were computed since."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._num_computed = 0
        self._seen_at: dict[str, int] = {}
        """What was computed before each one was seen last."""

    @property
    def are_several(self) -> bool:
        """Whether there is more than one."""
        return len(self._seen_at) > 1

    def see(self, tenants: Iterable[str]) -> None:
        """These are there."""
        for tenant in tenants:
            self._seen_at[tenant] = self._num_computed
        oldest = self._num_computed - self._num_tokens
        for tenant in [other for other, at in self._seen_at.items() if at <= oldest]:
            del self._seen_at[tenant]

    def compute(self, num_tokens: int) -> None:
        """So many tokens are computed, of whomever."""
        self._num_computed += num_tokens
