"""The models in the hub's own cache on this machine, without asking the hub."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "models--"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A snapshot of a hub model."""

    name: str
    path: Path
    num_bytes: int


def hub_cache() -> Path:
    """Where the hub's library keeps what it fetched, by its own variables."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path("~/.cache").expanduser()) / "huggingface" / "hub"


def cached_models() -> Iterator[CachedModel]:
    """Snapshots with a configuration and weights, the one that `main` names of each model."""
    try:
        folders = sorted(hub_cache().glob(f"{PREFIX}*--*"))
    except OSError:
        return
    for folder in folders:
        snapshot = _main(folder)
        if snapshot is None or not (snapshot / "config.json").exists():
            continue
        weights = [path for path in snapshot.glob("*.safetensors") if path.exists()]
        if weights:
            num_bytes = sum(path.stat().st_size for path in weights)
            yield CachedModel(name_of(snapshot), snapshot, num_bytes)


def name_of(path: Path) -> str:
    """What people call the model there: its hub id if it is a snapshot in the hub's cache, else the
    name of its directory or file."""
    # (Links are not followed: those of the cache lead to files that are named by a hash.)
    full = Path(os.path.abspath(path))
    folder = full.parent.parent.name
    if full.parent.name == "snapshots" and folder.startswith(PREFIX):
        return folder.removeprefix(PREFIX).replace("--", "/", 1)
    return full.name


def _main(folder: Path) -> Path | None:
    """The snapshot that main names, else the newest."""
    try:
        reference = folder / "refs" / "main"
        if reference.is_file():
            named = folder / "snapshots" / reference.read_text(encoding="utf-8").strip()
            if named != folder / "snapshots" and named.is_dir():
                return named
        found = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)
    except (OSError, UnicodeDecodeError):
        return None
