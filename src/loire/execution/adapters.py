"""The shelf of adapters: which of those that were announced have their weights in memory.

Weights are read and packed by a thread when the first request for them waits, and given to the
products between two steps, which takes next to no time. Those that no sequence uses make room for
others, the least recently used first; they are read from their files again when they are needed.
Few are read ahead of the sequences that wait for them, so that these cannot fill the memory.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch

from loire.base.background import background_thread
from loire.base.errors import EngineError, LoireError
from loire.base.lora import MOST_ADAPTERS
from loire.base.messages import AdapterCounts, AnnouncedAdapter
from loire.models.adapters import AdapterWeights, adapt, drop_adapter, read_adapter
from loire.models.decoder import Decoder

log = logging.getLogger("loire.engine")

MOST_READ = 4
"""Adapters that are being read, or were and have no place on the shelf yet."""


@dataclass(slots=True)
class _Resident:
    """An adapter whose weights the products have."""

    number: int
    weights: AdapterWeights
    num_bytes: int
    num_users: int = 0
    was_taken: bool = False
    """Since it was read."""


class AdapterShelf:
    """Adapters of one decoder.

    announce(), is_ready() and counts may be used on any thread; settle(), take() and give_back() on
    the one that computes steps, between them. What sequences use stays, even if that is more than
    the budget.
    """

    def __init__(
        self, decoder: Decoder, device: torch.device, budget_bytes: int, most: int | None = None
    ) -> None:
        """budget_bytes, most: bytes and adapters that are kept in memory."""
        self.is_wanted: Callable[[str], bool] = lambda identity: False
        """Whether the engine has requests for it, running or not."""
        self.on_adapt: Callable[[int, str | None], None] = lambda number, path: None
        """Told which adapter a number stands for from now on, by its directory."""
        self._decoder = decoder
        self._device = device
        self._budget_bytes = budget_bytes
        self._most = MOST_ADAPTERS if most is None else min(most, MOST_ADAPTERS)
        self._lock = threading.Lock()
        self._announced: dict[str, AnnouncedAdapter] = {}
        self._reading: dict[str, Future[AdapterWeights]] = {}
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        """The least recently used first."""
        self._withdrawn: set[str] = set()
        """Those on the shelf that have no name any more."""
        self._reader = background_thread("loire-adapter")
        self._hits = self._loads = self._evictions = 0
        self._counts: AdapterCounts | None = None
        """As they stand, if they were asked for since they changed."""

    def announce(self, adapter: AnnouncedAdapter) -> None:
        """From now on requests may name it. Told again, its path or pin may be others."""
        identity = adapter.identity
        with self._lock:
            self._announced[identity] = adapter
            if adapter.pinned and identity not in self._residents:
                self._weights(identity)
            if adapter.withdrawn:
                self._withdrawn.add(identity)

    def is_ready(self, identity: str) -> bool:
        """Whether take() would not have to wait; it begins to read the weights if they are not
        here, and not too many others are being read. Of what cannot be read, take() says why."""
        with self._lock:
            if identity in self._residents:
                return True
            if identity not in self._reading and len(self._reading) >= MOST_READ:
                self._forget_unwanted()
                if len(self._reading) >= MOST_READ:
                    return False
            return self._weights(identity).done()

    def settle(self) -> None:
        """Put those on the shelf that have been read, if there is room, and take those off it that
        have no name any more and that no request needs."""
        if self._withdrawn:
            for identity in tuple(self._withdrawn):
                self._let_go(identity)
        if self._reading:
            with self._lock:
                self._forget_unwanted()
                done = [item for item in self._reading.items() if item[1].done()]
            for identity, reading in done:
                if reading.exception() is None:  # else take() will say so
                    self._put(identity, reading.result(), ahead=True)

    def take(self, identity: str) -> int:
        """The number under which the products have it, for one more sequence; waits until its
        weights are read. Raises EngineError if they cannot be."""
        with self._lock:
            resident = self._residents.get(identity)
            reading = None if resident is not None else self._weights(identity)
        if reading is not None:
            resident = self._put(identity, self._result(identity, reading))
        assert resident is not None, "what is taken is put there"
        with self._lock:
            self._residents.move_to_end(identity)
            if resident.was_taken:
                self._hits += 1
                self._counts = None
            if self._announced[identity].withdrawn:
                self._withdrawn.add(identity)
        resident.was_taken = True
        resident.num_users += 1
        return resident.number

    def give_back(self, identity: str) -> None:
        """A sequence that took it has ended."""
        self._residents[identity].num_users -= 1

    @property
    def resident(self) -> tuple[str, ...]:
        """Those whose weights are in memory, the least recently used first."""
        with self._lock:
            return tuple(self._residents)

    @property
    def counts(self) -> AdapterCounts:
        """How many there are, and what happened so far: the same object until that changes, as
        each step asks."""
        known = self._counts
        if known is not None:
            return known
        with self._lock:
            self._counts = counts = AdapterCounts(
                num_resident=len(self._residents),
                num_bytes=sum(resident.num_bytes for resident in self._residents.values()),
                hits=self._hits,
                loads=self._loads,
                evictions=self._evictions,
            )
        return counts

    def _weights(self, identity: str) -> "Future[AdapterWeights]":
        """Of one that is not resident, being read. The lock is held."""
        if identity not in self._reading:
            announced = self._announced.get(identity)
            self._reading[identity] = self._reader.submit(self._read, identity, announced)
        return self._reading[identity]

    def _read(self, identity: str, announced: AnnouncedAdapter | None) -> AdapterWeights:
        if announced is None:
            raise EngineError(f"no adapter {identity[:12]} was announced")
        with torch.inference_mode():
            adapter, weights = read_adapter(Path(announced.path), self._decoder, self._device)
        if adapter.identity != identity:
            raise EngineError(
                f"{announced.path} is not what it was when it was loaded: its files were changed; "
                f"load it again"
            )
        return weights

    def _result(self, identity: str, reading: "Future[AdapterWeights]") -> AdapterWeights:
        try:
            return reading.result()
        except (LoireError, OSError) as error:
            with self._lock:
                self._reading.pop(identity, None)  # another request may find it mended
            raise EngineError(f"the adapter cannot be loaded: {error}") from error

    def _forget_unwanted(self) -> None:
        """What was read for requests that have gone. The lock is held."""
        for identity, reading in tuple(self._reading.items()):
            if reading.done() and not self.is_wanted(identity) and not self._is_pinned(identity):
                del self._reading[identity]

    def _put(
        self, identity: str, weights: AdapterWeights, *, ahead: bool = False
    ) -> _Resident | None:
        """Give the products what was read. ahead: unless others would have to go that requests
        need; then None."""
        num_bytes = sum(packed.num_bytes for _, packed in weights)
        has_room = self._make_room(num_bytes, ahead=ahead)
        if ahead and not has_room:
            return None
        taken = {resident.number for resident in self._residents.values()}
        number = next((n for n in range(MOST_ADAPTERS) if n not in taken), None)
        if number is None:
            raise EngineError(
                f"running requests use {MOST_ADAPTERS} adapters, which is the most: ask again when "
                f"some of them have ended"
            )
        self.on_adapt(number, self._announced[identity].path)
        adapt(number, weights)
        resident = _Resident(number, weights, num_bytes)
        with self._lock:
            self._residents[identity] = resident
            self._reading.pop(identity, None)
            self._loads += 1
            self._counts = None
        log.info("adapter %s: %.1f MB in memory", identity[:12], num_bytes / 1e6)
        return resident

    def _make_room(self, num_bytes: int, *, ahead: bool) -> bool:
        """Whether there is room now."""
        held = sum(resident.num_bytes for resident in self._residents.values())

        def fits() -> bool:
            return held + num_bytes <= self._budget_bytes and len(self._residents) < self._most

        for identity, resident in list(self._residents.items()):
            if fits():
                return True
            is_kept = self._is_kept(identity) or (ahead and self.is_wanted(identity))
            if not resident.num_users and not is_kept:
                self._evictions += 1
                self._drop(identity, resident)
                held -= resident.num_bytes
        return fits()

    def _is_kept(self, identity: str) -> bool:
        """Pinned, or needed again by somebody who was preempted while its file may be gone."""
        is_withdrawn = self._announced[identity].withdrawn
        return self._is_pinned(identity) or (is_withdrawn and self.is_wanted(identity))

    def _is_pinned(self, identity: str) -> bool:
        announced = self._announced.get(identity)
        return announced is not None and announced.pinned

    def _let_go(self, identity: str) -> None:
        """Of one that was withdrawn, unless a name stands for it again."""
        resident = self._residents.get(identity)
        if resident is not None and self._announced[identity].withdrawn:
            if resident.num_users or self.is_wanted(identity):
                return
            self._drop(identity, resident)
        with self._lock:
            self._withdrawn.discard(identity)

    def _drop(self, identity: str, resident: _Resident) -> None:
        self.on_adapt(resident.number, None)
        drop_adapter(resident.number, (product for product, _ in resident.weights))
        with self._lock:
            del self._residents[identity]
            self._counts = None
        # Giving the memory back takes a while.
        self._reader.submit(resident.weights.clear)
