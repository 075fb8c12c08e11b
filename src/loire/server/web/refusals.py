"""Refusals of the layers before the routes."""

from fastapi import Response
from starlette.types import Scope

from loire.server.web.call import get_call
from loire.server.web.errors import ApiError, error_response


def refusal(scope: Scope, error: ApiError) -> Response:
    """The response to a call that no route will see."""
    get_call(scope).error_code = error.code
    return error_response(error, scope["path"])
