"""One process for the templates of many cases: to start another for each costs more than the rest.

It is the same program under the same limits, opened again for each case. One that was killed, or
ended for its memory, is replaced.
"""

from typing import Any

from loire.text import template_client
from loire.text.child_process import ChildProcess

_idle: list[ChildProcess] = []


class _Reused:
    """Stands for a ChildProcess; ending it gives the process to the next one who wants one."""

    def __init__(self, module: str, *arguments: str) -> None:
        while _idle and _idle[-1].has_ended:
            _idle.pop()
        self._child = _idle.pop() if _idle else ChildProcess(module, *arguments)
        self._lent = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._child, name)

    def end(self) -> None:
        if self._lent and not self._child.has_ended:
            _idle.append(self._child)
        self._lent = False


def reuse_template_processes() -> None:
    """From now on, in this process."""
    template_client.ChildProcess = _Reused  # type: ignore[misc,assignment]
