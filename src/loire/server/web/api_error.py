"""The HTTP layer's own error. Imports no web framework: settings are read without one."""

from collections.abc import Mapping

from loire.base.errors import LoireError


class ApiError(LoireError):
    """An error of the HTTP layer itself, with the status it is answered with."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers
