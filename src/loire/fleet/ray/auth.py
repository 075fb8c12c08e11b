"""Ray's token authentication, always. Whoever reaches Ray's ports can run code there, and they are
open beyond loopback whatever one asks for.

Ray reads these variables when it is imported, so this module does without it.
"""

import os
import secrets
from pathlib import Path

from loire.base.errors import ConfigError

ADDRESS_VARIABLE = "RAY_ADDRESS"
MODE_VARIABLE = "RAY_AUTH_MODE"
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
AUTO_VARIABLE = "RAY_ENABLE_AUTO_CONNECT"
"""Else Ray starts another cluster by itself when something calls it after the first has ended."""


def require_token() -> None:
    """Switch authentication on, before Ray is imported. A cluster that will be started here gets a
    token of its own, unless there is one that its user may want to look in with.

    Raises ConfigError if it was switched off.
    """
    os.environ[AUTO_VARIABLE] = "0"
    mode = os.environ.setdefault(MODE_VARIABLE, "token")
    if mode.lower() != "token":
        raise ConfigError(
            f"{MODE_VARIABLE} is {mode!r}, but whoever reaches Ray's ports runs code there: leave "
            f"it out, or say 'token'"
        )
    if ADDRESS_VARIABLE not in os.environ and not _has_token():
        os.environ[TOKEN_VARIABLE] = secrets.token_hex(32)


def _has_token() -> bool:
    given = TOKEN_VARIABLE in os.environ or PATH_VARIABLE in os.environ
    return given or (Path.home() / ".ray" / "auth_token").exists()
