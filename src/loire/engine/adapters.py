"""The adapters of an engine by the names that its users give them."""

import dataclasses
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loire.base.errors import RequestError
from loire.base.lora import LoRARequest
from loire.base.messages import AnnouncedAdapter
from loire.checkpoint.adapter import Adapter, open_adapter
from loire.checkpoint.description import ModelDescription

MOST_NAMES = 10_000
_NAME = re.compile(r"[\w.:@/ +-]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedAdapter:
    """An adapter under its name."""

    name: str
    adapter: Adapter
    pinned: bool


class AdapterNames:
    """Names and what they stand for. Several threads may use it.

    announce: tells the engine, which may be told of the same content again.
    """

    def __init__(
        self,
        description: ModelDescription,
        announce: Callable[[AnnouncedAdapter], object],
    ) -> None:
        self.reserved: frozenset[str] = frozenset()
        """Names that stand for something else."""
        self._description = description
        self._announce = announce
        self._lock = threading.Lock()
        self._named: dict[str, NamedAdapter] = {}
        self._seen: dict[tuple[str, tuple[tuple[int, int], ...]], Adapter] = {}
        """Of the directories that Python's callers name again and again: path, times and sizes."""

    @property
    def named(self) -> Sequence[NamedAdapter]:
        """All of them, in the order in which they came."""
        with self._lock:
            return tuple(self._named.values())

    def identity(self, name: str) -> str | None:
        """The content of the adapter of that name; None if there is none."""
        with self._lock:
            found = self._named.get(name)
        return None if found is None else found.adapter.identity

    def load(
        self, name: str, path: Path, *, pinned: bool = False, replace: bool = False
    ) -> NamedAdapter:
        """Read and check an adapter and give it a name; requests may be for it from now on.

        Raises RequestError if the name is no name or taken (unless it is replaced), ModelError if
        the adapter cannot be used.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name != name.strip():
            raise RequestError(
                "the name of an adapter is 1 to 200 letters, digits, spaces or ._:@/+-",
                param="lora_name",
            )
        if name in self.reserved:
            raise RequestError(
                f"{name!r} is the name of the model itself: take another for the adapter",
                param="lora_name",
            )
        named = NamedAdapter(
            name=name, adapter=open_adapter(path, self._description), pinned=pinned
        )
        with self._lock:
            if name in self._named and not replace:
                raise RequestError(
                    f"there is an adapter {name!r} already: unload it first, or take another name",
                    param="lora_name",
                )
            if name not in self._named and len(self._named) >= MOST_NAMES:
                raise RequestError(
                    f"there are {MOST_NAMES} adapters, which is the most: unload some first",
                    param="lora_name",
                )
            self._tell(named)
            before = self._named.get(name)
            self._named[name] = named
            self._unpin(before)
        return named

    def unload(self, name: str) -> None:
        """The name is nobody's from now on; requests that are there go on. Raises RequestError."""
        with self._lock:
            found = self._named.pop(name, None)
            if found is None:
                raise RequestError(f"there is no adapter {name!r}", param="lora_name")
            self._unpin(found)

    def use(self, request: LoRARequest) -> str:
        """The content of an adapter that a caller names by its directory. Raises as load()."""
        path = Path(request.lora_path)
        key = str(path), _state_of(path)
        with self._lock:
            adapter = self._seen.get(key)
        if adapter is None:
            adapter = open_adapter(path, self._description)
            with self._lock:
                self._seen[key] = adapter
                self._announce(AnnouncedAdapter(adapter.identity, str(path.resolve())))
        return adapter.identity

    def _tell(self, named: NamedAdapter) -> None:
        adapter = named.adapter
        path = str(adapter.path.resolve())
        self._announce(AnnouncedAdapter(adapter.identity, path, named.pinned))

    def _unpin(self, before: NamedAdapter | None) -> None:
        """Unless a name still pins its content. The lock is held."""
        if before is None or not before.pinned:
            return
        alike = [x for x in self._named.values() if x.adapter.identity == before.adapter.identity]
        if not any(named.pinned for named in alike):
            self._tell(dataclasses.replace(before, pinned=False))


def _state_of(path: Path) -> tuple[tuple[int, int], ...]:
    """Changes whenever the files of an adapter do; empty where there are none."""
    found = []
    for file in sorted(path.glob("adapter_*")):
        stat = file.stat()
        found.append((stat.st_mtime_ns, stat.st_size))
    return tuple(found)
