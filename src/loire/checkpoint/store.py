"""The model store: from a name to files on this machine.

A name is a path, a pinned model such as "smollm2", or a hub id such as "org/name". Pinned models
live under LOIRE_HOME (default: loire in the user's cache directory), hub models in the hub's own
cache; both work offline once pulled.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loire.base.errors import ModelNotFoundError
from loire.checkpoint.download import Progress, fetch
from loire.checkpoint.registry import PINNED

HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model that can be named."""

    name: str
    source: str
    license: str
    present: bool
    num_bytes: int
    path: Path | None


def loire_home() -> Path:
    """LOIRE_HOME, else loire in $XDG_CACHE_HOME, else ~/.cache/loire."""
    if home := os.environ.get("LOIRE_HOME"):
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache") / "loire"


def list_models() -> list[StoredModel]:
    """All pinned models, here or not."""
    found = []
    for model in PINNED.values():
        path = loire_home() / "models" / model.name / model.file_name
        present = path.is_file() and path.stat().st_size == model.num_bytes
        found.append(
            StoredModel(
                name=model.name,
                source=f"{model.summary}; {model.source}",
                license=model.license,
                present=present,
                num_bytes=model.num_bytes,
                path=path if present else None,
            )
        )
    return found


def resolve_model(
    name: str, *, allow_download: bool = True, progress: Progress | None = None
) -> Path:
    """The directory or GGUF file of a model, fetched if it may and must be.

    Raises ModelNotFoundError, saying what was tried.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name in PINNED:
        return _resolve_pinned(name, allow_download, progress)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _resolve_hub(name, allow_download)
    raise ModelNotFoundError(
        f"there is no model {name!r}: it is no path here, no hub id (org/name), and not one of "
        f"{', '.join(PINNED)}"
    )


def _resolve_pinned(name: str, allow_download: bool, progress: Progress | None) -> Path:
    model = PINNED[name]
    directory = loire_home() / "models" / name
    path = directory / model.file_name
    # A file gets its name only once it is complete and verified.
    if path.is_file() and path.stat().st_size == model.num_bytes:
        return path
    if not allow_download:
        raise ModelNotFoundError(f"{name} is not here yet: run `loire pull {name}`")
    if progress is not None:
        return fetch(model, directory, progress)
    with terminal_progress() as report:
        return fetch(model, directory, report)


def _resolve_hub(name: str, allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        if not allow_download:
            raise ModelNotFoundError(
                f"{name} is not in the local hub cache: run `loire pull {name}`"
            ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"{name} is neither a path here nor in the local hub cache, and the hub did not give "
            f"it: {error}"
        ) from error


@contextmanager
def terminal_progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on stderr, where someone watches it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(bars.task_ids[tasks[what]], completed=done)

        yield report
