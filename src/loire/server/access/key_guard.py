"""Lets nobody in without a key: every route is closed but those that the table opens."""

import math

from starlette.types import ASGIApp, Receive, Scope, Send

from loire.server.access.caller import Caller, set_caller
from loire.server.access.key_throttle import KeyThrottle
from loire.server.access.keys import ApiKey
from loire.server.access.options import Access
from loire.server.access.rates import TenantMeter
from loire.server.web.call import get_call
from loire.server.web.errors import ApiError
from loire.server.web.refusals import refusal
from loire.server.web.routes import route_of


class KeyGuard:
    """ASGI middleware: 401 without a key that is known, 403 for admin routes without an admin key.

    429 for keys of an address that sent many wrong ones. With a ring that needs no key everything
    is open.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._ring = access.ring
        self._open = ("everybody", "scrapers") if access.public_metrics else ("everybody",)
        self._clock = access.clock
        meter = TenantMeter(limits=access.limits, clock=access.clock)
        self._nobody = Caller(admin=not access.ring, meter=meter)
        self._throttle = KeyThrottle(access.clock)
        self._callers: dict[str, tuple[ApiKey, Caller]] = {}
        """Of each tenant that came, with the key that it has."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        caller = self._nobody
        if self._ring:
            presented = self._presented(scope)
            key = None if presented is None else self._ring.find(presented)
            error = self._refusal(scope, presented, key)
            if error is not None:
                await refusal(scope, error)(scope, receive, send)
                return
            if key is not None:
                caller = self._caller(key)
        set_caller(scope, caller)
        get_call(scope).tenant = caller.tenant
        await self._app(scope, receive, send)

    def _caller(self, key: ApiKey) -> Caller:
        """Who has a key. A new key of the same name and limits goes on with what was used."""
        known = self._callers.get(key.name)
        if known is not None and known[0] == key:
            return known[1]
        goes_on = known is not None and known[0].limits == key.limits
        if known and goes_on:
            meter = known[1].meter
        else:
            meter = TenantMeter(key.name, key.limits, self._clock)
        caller = Caller(key.name, key.admin, meter, adapters=key.adapters)
        self._callers[key.name] = key, caller
        return caller

    def _presented(self, scope: Scope) -> bytes | None:
        """What stands in `Authorization: Bearer KEY` or, as Anthropic has it, in `x-api-key`."""
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            return key.strip()
        if b"x-api-key" in headers:
            return headers[b"x-api-key"].strip()
        return None

    def _refusal(
        self, scope: Scope, presented: bytes | None, key: ApiKey | None
    ) -> ApiError | None:
        open_to = route_of(scope["path"]).open_to
        if open_to in self._open:
            return None
        call = get_call(scope)
        if presented is not None:
            wait_s = self._throttle.wait_s(call.address, None if key is None else key.name)
            if wait_s:
                call.bad_key = "throttled"
                seconds = math.ceil(wait_s)
                return ApiError(
                    429,
                    f"too many wrong keys came from this address: try again in {seconds} s",
                    code="too_many_wrong_keys",
                    headers={"Retry-After": str(seconds)},
                )
        if key is None:
            call.bad_key = "missing" if presented is None else "wrong"
            return ApiError(
                401,
                "this server needs a key that it knows: send it as 'Authorization: Bearer KEY' "
                "(or as 'x-api-key: KEY')",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if open_to == "admins" and not key.admin:
            return ApiError(
                403,
                "this route is about all tenants, and needs an admin key (see --admin-key-file)",
                code="admin_key_needed",
            )
        return None
