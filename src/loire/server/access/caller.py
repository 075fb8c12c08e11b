"""Who makes a call: known before any route runs, and kept in the call's ASGI scope."""

from dataclasses import dataclass, field

from starlette.types import Scope

from loire.server.access.rates import TenantMeter


@dataclass(frozen=True, slots=True)
class Caller:
    """tenant: the name of the key; empty where no keys are configured. admin: whether it may see
    what belongs to others; so may everybody where no keys are configured. meter: of its tenant.
    least_priority: what its requests have, unless they ask for less urgency (a higher number).
    """

    tenant: str = ""
    admin: bool = False
    meter: TenantMeter = field(default_factory=TenantMeter)
    least_priority: int | None = None


def set_caller(scope: Scope, caller: Caller) -> None:
    """Note who makes this call."""
    scope.setdefault("state", {})["caller"] = caller


def get_caller(scope: Scope) -> Caller:
    """Who makes this call; nobody in particular if nothing was noted."""
    caller: Caller = scope.get("state", {}).get("caller", Caller())
    return caller
