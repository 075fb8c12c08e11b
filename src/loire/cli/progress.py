"""Bars of progress for verbs that take a while."""

import sys
from typing import Any, Literal


class ProgressBars:
    """A bar per thing that is being worked on, on stderr, where somebody watches.

    times: what stands beside a bar, the time that went by or the one that is left.
    """

    def __init__(self, *, times: Literal["elapsed", "remaining"], quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        time_column = TimeElapsedColumn() if times == "elapsed" else TimeRemainingColumn()
        columns = (TextColumn("{task.description:<12}"), BarColumn(), time_column)
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "ProgressBars":
        if sys.stderr.isatty():
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def update(self, name: str, share: float) -> None:
        """Move a bar, which appears with its first news."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=1.0)
        self._bars.update(self._tasks[name], completed=share)
