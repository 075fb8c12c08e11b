"""The adapters of an engine by the names that its users give them."""

import re
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from loire.base.config import EngineOptions
from loire.base.errors import (
    ConfigError,
    ModelNotFoundError,
    RequestError,
    UnsupportedModelError,
)
from loire.base.lora import MOST_ADAPTERS, LoRARequest
from loire.base.messages import AnnouncedAdapter
from loire.checkpoint.adapter import Adapter, open_adapter
from loire.checkpoint.adapter_settings import MOST_RANK
from loire.checkpoint.description import ModelDescription

MOST_NAMES = 10_000
_NAME = re.compile(r"(?=.{1,200}\Z)\w[\w.:@+-]*(/\w[\w.:@+-]*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedAdapter:
    """An adapter under its name."""

    name: str
    identity: str
    """Hash of its content."""
    root: str
    """Where it came from, as people are told."""
    path: str
    """Its directory."""
    rank: int
    """The largest of its layers."""
    pinned: bool

    def announced(self, *, pinned: bool, withdrawn: bool = False) -> AnnouncedAdapter:
        """What the engine is told."""
        return AnnouncedAdapter(self.identity, self.path, pinned, withdrawn)


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
        self._is_enabled, self._most_rank = True, MOST_RANK
        self._description = description
        self._announce = announce
        self._lock = threading.Lock()
        self._named: dict[str, NamedAdapter] = {}
        self._alike: dict[str, dict[str, NamedAdapter]] = {}
        """The same by content."""
        self._seen: dict[tuple[str, tuple[tuple[int, int], ...]], str] = {}
        """Content of the directories that Python's callers name again and again, by path, times
        and sizes."""

    def limit(self, options: EngineOptions) -> None:
        """What may be loaded from now on. Raises ConfigError for numbers that mean nothing."""
        check_limits(options)
        self._is_enabled = options.enable_lora
        self._most_rank = options.max_lora_rank or MOST_RANK

    @property
    def named(self) -> Sequence[NamedAdapter]:
        """All of them, in the order in which they came."""
        with self._lock:
            return tuple(self._named.values())

    def identity(self, name: str) -> str | None:
        """The content of the adapter of that name; None if there is none."""
        with self._lock:
            found = self._named.get(name)
        return None if found is None else found.identity

    def load(
        self,
        name: str,
        path: Path,
        *,
        load_inplace: bool = False,
        pinned: bool = False,
        root: str = "",
    ) -> NamedAdapter:
        """Read and check an adapter and give it a name; requests may be for it from now on.

        load_inplace: the name may be another's, whose requests go on with what they began with.
        pinned: its weights are read at once and stay in memory. root: where it came from, as people
        are told; its path if nothing is given.

        Raises RequestError if the name is no name or taken, ModelError if the adapter cannot be
        used.
        """
        check_name(name, self.reserved)
        self._check_free(name, load_inplace=load_inplace)
        adapter = self._opened(path)
        named = NamedAdapter(
            name=name,
            identity=adapter.identity,
            root=root or str(path),
            path=str(path.resolve()),
            rank=adapter.rank,
            pinned=pinned,
        )
        with self._lock:
            self._check_free(name, load_inplace=load_inplace)
            before = self._named.get(name)
            if before is not None:
                del self._alike[before.identity][name]
            self._named[name] = named
            self._alike.setdefault(named.identity, {})[name] = named
            self._announce(named.announced(pinned=self._is_pinned(named.identity)))
            if before is not None and before.identity != named.identity:
                self._let_go(before)
        return named

    def _check_free(self, name: str, *, load_inplace: bool) -> None:
        if name in self._named and not load_inplace:
            raise RequestError(
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                f"adapter in place, set 'load_inplace' to True.",
                param="lora_name",
            )
        if name not in self._named and len(self._named) >= MOST_NAMES:
            raise RequestError(
                f"there are {MOST_NAMES:,} adapters, which is the most: unload some first",
                param="lora_name",
            )

    def unload(self, name: str) -> None:
        """The name is nobody's from now on; requests that are there go on. Raises
        ModelNotFoundError if it was nobody's before."""
        with self._lock:
            found = self._named.pop(name, None)
            if found is None:
                raise ModelNotFoundError(f"The lora adapter '{name[:200]}' cannot be found.")
            del self._alike[found.identity][name]
            self._let_go(found)

    def use(self, request: LoRARequest | str) -> str:
        """The content of an adapter that a caller names by its directory, or by its name. Raises
        RequestError for a name that is nobody's, and as load()."""
        if isinstance(request, str):
            named = self.identity(request)
            if named is None:
                raise RequestError(f"there is no adapter {request[:200]!r}", param="lora_request")
            return named
        path = Path(request.lora_path)
        key = str(path), _state_of(path)
        with self._lock:
            identity = self._seen.get(key)
        if identity is None:
            identity = self._opened(path).identity
        with self._lock:
            if len(self._seen) >= MOST_NAMES:
                self._seen.pop(next(iter(self._seen)))
            self._seen[key] = identity
            # (Perhaps withdrawn since it was seen.)
            announced = AnnouncedAdapter(
                identity, str(path.resolve()), self._is_pinned(identity), withdrawn=False
            )
            self._announce(announced)
        return identity

    def _opened(self, path: Path) -> Adapter:
        if not self._is_enabled:
            raise UnsupportedModelError("adapters are switched off (enable_lora is false)")
        adapter = open_adapter(path, self._description)
        if adapter.rank > self._most_rank:
            raise UnsupportedModelError(
                f"{path} has rank {adapter.rank}, but max_lora_rank is {self._most_rank}"
            )
        return adapter

    def _is_pinned(self, identity: str) -> bool:
        return any(named.pinned for named in self._alike.get(identity, {}).values())

    def _let_go(self, before: NamedAdapter) -> None:
        """Of what a name stood for, unless another still does. The lock is held."""
        alike = self._alike[before.identity]
        if not alike:
            del self._alike[before.identity]
            self._announce(before.announced(pinned=False, withdrawn=True))
        elif before.pinned:
            [other, *_] = alike.values()
            self._announce(other.announced(pinned=self._is_pinned(before.identity)))


def check_limits(options: EngineOptions) -> None:
    """Raises ConfigError for numbers that mean nothing."""
    most = (
        ("max_lora_rank", options.max_lora_rank, MOST_RANK),
        ("max_loras", options.max_loras, MOST_ADAPTERS),
        ("max_cpu_loras", options.max_cpu_loras, MOST_ADAPTERS),
    )
    for name, given, bound in most:
        if given is not None and not 1 <= given <= bound:
            raise ConfigError(f"{name} is {given}, but lies between 1 and {bound}")
    held, together = options.max_cpu_loras, options.max_loras
    if held is not None and together is not None and held < together:
        raise ConfigError(
            f"max_cpu_loras is {held}, which is less than max_loras, {together}: a step's "
            f"adapters must be in memory"
        )


def check_name(name: str, reserved: Collection[str]) -> None:
    """Raises RequestError for what is no name, or stands for something else (reserved)."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"{str(name)[:80]!r} is no name for an adapter: names are 1 to 200 letters, digits or "
            f"._:@+-, perhaps in parts with / between them, each of which begins with a letter or "
            f"digit",
            param="lora_name",
        )
    if name in reserved:
        raise RequestError(
            f"{name!r} is the name of the model itself: take another for the adapter",
            param="lora_name",
        )


def _state_of(path: Path) -> tuple[tuple[int, int], ...]:
    """Changes whenever the files of an adapter do; empty where there are none."""
    found = []
    for file in sorted(path.glob("adapter_*")):
        stat = file.stat()
        found.append((stat.st_mtime_ns, stat.st_size))
    return tuple(found)
