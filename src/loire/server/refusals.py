"""Refusals of the layers before the routes, in the error form of the API that was called."""

import json

from fastapi import Response
from starlette.types import Scope

from loire.server.call import get_call
from loire.server.errors import ApiError, error_response

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def refusal(scope: Scope, error: ApiError) -> Response:
    """The response to a call that no route will see."""
    get_call(scope).error_code = error.code
    if not scope["path"].startswith("/v1/messages"):
        return error_response(error)
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    body = {"type": "error", "error": {"type": kind, "message": str(error)}}
    return Response(
        json.dumps(body), error.status, headers=error.headers, media_type="application/json"
    )
