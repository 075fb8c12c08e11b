"""Names every call, and says in the log how it went."""

import logging
import re
import secrets
import time
from collections import defaultdict
from functools import partial

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loire.server.observe.audit_log import AuditLog
from loire.server.observe.metrics import Metrics
from loire.server.observe.rare_log import FewOfMany
from loire.server.observe.spans import Spans
from loire.server.web.call import Call, set_call
from loire.server.web.errors import error_response
from loire.server.web.routes import dialect_of, route_of

log = logging.getLogger("loire.server.calls")

STRANGERS_PER_MINUTE = 60
"""Calls of those whom nobody knows that are noted: as many as they like would fill the disk."""
REFUSALS_PER_MINUTE = 60
"""Calls of one tenant that are refused, or given up, and have a line in the log; the audit log has
all of them."""
_STRANGERS = frozenset(("host_not_allowed", "origin_not_allowed"))

_GIVEN_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class CallLog:
    """ASGI middleware: every response has an `x-request-id`, every call to the API a log line.

    The id is the client's own if it sent one of 1 to 128 letters, digits and "._:-". GET calls
    that succeed, those for /health, and those of who tries keys, are logged at level DEBUG only:
    they are many. The audit log has every call but those that are open to everybody. Of calls
    without a key that counts, both have a few each minute; so has the log of those of a tenant that
    are refused or given up.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        spans: Spans | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._spans = spans
        self._audit = audit
        self._strangers = FewOfMany(STRANGERS_PER_MINUTE)
        self._refusals = defaultdict[str, FewOfMany](partial(FewOfMany, REFUSALS_PER_MINUTE))
        """Of each tenant."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        address = client[0] if client else ""
        call = Call(_call_id(scope), scope["method"], scope["path"], address=address)
        if self._spans is not None:
            call.trace_headers = _trace_headers(scope)
        set_call(scope, call)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = call.call_id
                if dialect_of(scope["path"]) == "anthropic":
                    headers["request-id"] = call.call_id  # Anthropic's name of it
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            # Answered here, and not further out, so that this response has its id as well.
            if call.status is None:
                await error_response(error, scope["path"])(scope, receive, send_with_id)
            raise
        finally:
            call.end_s = time.monotonic()
            is_noted = self._is_noted(call)
            self._note_end(call, is_noted)
            if self._spans is not None and not call.path.startswith("/health"):
                self._spans.add(call)
            is_open = route_of(call.path).open_to == "everybody"
            if self._audit is not None and is_noted and not is_open:
                self._audit.add(call)

    def _is_noted(self, call: Call) -> bool:
        if call.bad_key is None and call.error_code not in _STRANGERS:
            return True
        num_missed = self._strangers.take()
        call.num_unnoted = num_missed or 0
        return num_missed is not None

    def _note_end(self, call: Call, is_noted: bool) -> None:
        assert call.end_s is not None
        asks_health = call.path.startswith("/health")
        refused = (
            not asks_health
            and call.status is not None
            and (400 <= call.status < 499 or call.status == 503)
        )
        if refused:
            reason = call.error_code or str(call.status)
            self._metrics.rejections.labels(reason).inc()
            self._metrics.rejection_duration.labels(reason).observe(call.end_s - call.start_s)
        if call.bad_key is not None:
            self._metrics.authentication_failures.labels(call.bad_key).inc()
        num_missed = self._missed(call, refused) if is_noted else None
        is_throttled = call.bad_key == "throttled"
        succeeds = call.method == "GET" and (call.status or 500) < 400
        quiet = asks_health or succeeds or is_throttled or num_missed is None
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s %s",
            call.method,
            _printable(call.path),
            "gave no answer" if call.status is None else call.status,
            extra={"fields": _fields(call) | ({"unnoted": num_missed} if num_missed else {})},
        )

    def _missed(self, call: Call, refused: bool) -> int | None:
        """How many calls before this one had no line; None if it has none either."""
        if call.bad_key is None and (refused or call.status in (None, 499)):
            return self._refusals[call.tenant].take()
        return call.num_unnoted


def _call_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _GIVEN_ID.fullmatch(value):
            return str(value.decode())
    return f"call-{secrets.token_hex(8)}"


def _trace_headers(scope: Scope) -> dict[str, str]:
    return {
        name.decode(): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate")
    }


def _printable(path: str) -> str:
    """A path without what could forge lines of the log."""
    return path[:200].encode("unicode_escape").decode()


def _fields(call: Call) -> dict[str, object]:
    assert call.end_s is not None
    fields: dict[str, object] = {
        "request_id": call.call_id,
        "tenant": call.tenant or None,
        "seconds": round(call.end_s - call.start_s, 4),
        "error": call.error_code,
    }
    if call.requests:
        timings = [life.timing for life in call.requests]
        ttfts = [timing.ttft_s for timing in timings if timing.ttft_s is not None]
        fields |= {
            "engine_requests": [life.request_id for life in call.requests],
            "prompt_tokens": sum(life.num_prompt_tokens for life in call.requests),
            "cached_tokens": sum(life.num_cached_tokens for life in call.requests),
            "output_tokens": sum(life.num_output_tokens for life in call.requests),
            "ttft_s": round(min(ttfts), 4) if ttfts else None,
            "outcome": ",".join(sorted({str(life.outcome) for life in call.requests})),
        }
    return {name: value for name, value in fields.items() if value is not None}
