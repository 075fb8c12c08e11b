"""Loading a model for a verb, with progress for whoever watches."""

import sys
from typing import Any

from loire.api import LLM
from loire.checkpoint.store import resolve_model


def load_llm(model: str, options: dict[str, Any], *, quiet: bool = False) -> LLM:
    """An LLM with the given options; progress and the two-line plan go to stderr."""
    resolve_model(model)  # with its own progress, before the bar of the loading
    if quiet or not sys.stderr.isatty():
        llm = LLM(model, **options)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("loading {task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(model, total=1.0)
            llm = LLM(
                model, progress=lambda share: progress.update(task, completed=share), **options
            )
    if not quiet:
        for line in llm.engine.plan_lines:
            print(line, file=sys.stderr)
    return llm
