"""Who makes a call: known before any route runs, and kept in the call's ASGI scope."""

from dataclasses import dataclass, field

from starlette.types import Scope

from loire.server.access.rates import TenantMeter, Use


@dataclass(frozen=True, slots=True)
class Caller:
    """tenant: the name of the key; empty where no keys are configured. admin: whether it may see
    what belongs to others; so may everybody where no keys are configured. meter: of its tenant.
    least_priority: what its requests have, unless they ask for less urgency (a higher number).
    adapters: names of those that it may use; None for all.
    """

    tenant: str = ""
    admin: bool = False
    meter: TenantMeter = field(default_factory=TenantMeter)
    least_priority: int | None = None
    adapters: frozenset[str] | None = None

    def may_use(self, adapter: str) -> bool:
        """Whether an adapter of that name is there for this caller."""
        return self.adapters is None or adapter in self.adapters


def set_caller(scope: Scope, caller: Caller) -> None:
    """Note who makes this call."""
    scope.setdefault("state", {})["caller"] = caller


def get_caller(scope: Scope) -> Caller:
    """Who makes this call; nobody in particular if nothing was noted."""
    caller: Caller = scope.get("state", {}).get("caller", Caller())
    return caller


def set_use(scope: Scope, use: Use) -> None:
    """Note what this call takes of its tenant's limits."""
    scope.setdefault("state", {})["use"] = use


def get_use(scope: Scope) -> Use:
    """What this call takes of its tenant's limits; of none where nothing was noted."""
    use: Use | None = scope.get("state", {}).get("use")
    return use or TenantMeter().begin()
