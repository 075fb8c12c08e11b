"""The shelf of adapters: which of those that were announced have their weights in memory.

Weights are read by a thread when the first request for them waits, and given to the products
between two steps. Those that no sequence uses make room for others, the least recently used first.
"""

import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from loire.base.errors import EngineError
from loire.base.messages import AnnouncedAdapter
from loire.checkpoint.adapter import open_adapter
from loire.kernels.interface import MOST_ADAPTERS, LowRank
from loire.models.adapters import AdapterWeights, adapt, drop_adapter, read_adapter
from loire.models.decoder import Decoder

log = logging.getLogger("loire.engine")


@dataclass(slots=True)
class _Resident:
    """An adapter whose weights the products have."""

    number: int
    num_bytes: int
    products: tuple[str, ...]
    num_users: int = 0


class AdapterShelf:
    """Adapters of one decoder.

    announce() and is_ready() may be called on any thread; take() and give_back() on the
    one that computes steps, between them. What sequences use stays, even if that is more than the
    budget.
    """

    def __init__(self, decoder: Decoder, device: torch.device, budget_bytes: int) -> None:
        self._decoder = decoder
        self._device = device
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._announced: dict[str, AnnouncedAdapter] = {}
        self._reading: dict[str, Future[AdapterWeights]] = {}
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        """The least recently used first."""
        self._reader: ThreadPoolExecutor | None = None

    def announce(self, adapter: AnnouncedAdapter) -> None:
        """From now on requests may name it. Told again, its path or pin may be others."""
        with self._lock:
            self._announced[adapter.identity] = adapter

    def is_ready(self, identity: str) -> bool:
        """Whether take() would not have to wait; it begins to read the weights if they are not
        here. Of what cannot be read, take() says why."""
        with self._lock:
            return identity in self._residents or self._weights(identity).done()

    def take(self, identity: str) -> int:
        """The number under which the products have it, for one more sequence; waits until its
        weights are read. Raises EngineError if they cannot be."""
        with self._lock:
            resident = self._residents.get(identity)
            reading = None if resident is not None else self._weights(identity)
        if reading is not None:
            resident = self._put(identity, reading)
        assert resident is not None
        with self._lock:
            self._residents.move_to_end(identity)
            resident.num_users += 1
            return resident.number

    def give_back(self, identity: str) -> None:
        """A sequence that took it has ended."""
        with self._lock:
            self._residents[identity].num_users -= 1

    @property
    def resident(self) -> tuple[str, ...]:
        """Those whose weights are in memory, the least recently used first."""
        with self._lock:
            return tuple(self._residents)

    def _weights(self, identity: str) -> "Future[AdapterWeights]":
        """Of one that is not resident, being read. The lock is held."""
        if identity not in self._reading:
            if self._reader is None:
                self._reader = ThreadPoolExecutor(1, thread_name_prefix="loire-adapter")
            announced = self._announced.get(identity)
            self._reading[identity] = self._reader.submit(self._read, identity, announced)
        return self._reading[identity]

    def _read(self, identity: str, announced: AnnouncedAdapter | None) -> AdapterWeights:
        if announced is None:
            raise EngineError(f"no adapter {identity[:12]} was announced")
        adapter = open_adapter(Path(announced.path), self._decoder.description)
        if adapter.identity != identity:
            raise EngineError(
                f"the adapter {announced.path} is not what it was when the request came: its files "
                f"were changed"
            )
        return read_adapter(adapter, self._decoder, self._device)

    def _put(self, identity: str, reading: "Future[AdapterWeights]") -> _Resident:
        try:
            weights = reading.result()
        except Exception as error:
            with self._lock:
                self._reading.pop(identity, None)  # another request may find it mended
            raise EngineError(f"the adapter cannot be loaded: {error}") from error
        num_bytes = sum(_size(part) for parts in weights.values() for part in parts)
        with self._lock:
            self._make_room(num_bytes)
            taken = {resident.number for resident in self._residents.values()}
            number = next(n for n in range(MOST_ADAPTERS) if n not in taken)
            resident = _Resident(number, num_bytes, tuple(weights))
            adapt(self._decoder, number, weights)
            self._residents[identity] = resident
            self._reading.pop(identity, None)
        log.info("adapter %s: %.1f MB in memory", identity[:12], num_bytes / 1e6)
        return resident

    def _make_room(self, num_bytes: int) -> None:
        held = sum(resident.num_bytes for resident in self._residents.values())
        for identity, resident in list(self._residents.items()):
            if held + num_bytes <= self._budget_bytes and len(self._residents) < MOST_ADAPTERS:
                return
            if not resident.num_users and not self._is_pinned(identity):
                drop_adapter(self._decoder, resident.number, resident.products)
                del self._residents[identity]
                held -= resident.num_bytes

    def _is_pinned(self, identity: str) -> bool:
        announced = self._announced.get(identity)
        return announced is not None and announced.pinned


def _size(part: LowRank) -> int:
    return part.down.nbytes + part.up.nbytes
