"""Responses that can be retrieved and gone on from: in memory, bounded, each tenant's its own."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_CHARACTERS = 64_000_000
"""Of all that is kept together; the oldest is forgotten first."""
MAX_AGE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response that has ended.

    body: its JSON. messages: the whole conversation up to its end. items: its output, by id, for
    requests that refer to it. input: what was sent, as items.
    """

    tenant: str
    body: str
    messages: Sequence[Mapping[str, Any]]
    size: int
    """Characters."""
    stored_s: float = 0.0
    items: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    input: Sequence[Mapping[str, Any]] = ()


class ResponseStore:
    """The latest responses, by their ids. Not for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, response_id: str, response: StoredResponse) -> None:
        """Keep a response, and forget what is too old or too much."""
        self._responses[response_id] = response
        self._size += response.size
        self._forget_old()
        while self._size > MAX_CHARACTERS:
            self._forget(next(iter(self._responses)))

    def get(self, response_id: str, tenant: str) -> StoredResponse | None:
        """A response of this tenant; None if it has none of that id (any more)."""
        self._forget_old()
        found = self._responses.get(response_id)
        return found if found is not None and found.tenant == tenant else None

    def item(self, item_id: str, tenant: str) -> Mapping[str, Any] | None:
        """An item of the output of a response of this tenant; None if there is none of that id."""
        self._forget_old()
        kept = reversed(self._responses.values())
        mine = (response for response in kept if response.tenant == tenant)
        return next((found.items[item_id] for found in mine if item_id in found.items), None)

    def delete(self, response_id: str, tenant: str) -> bool:
        """Forget a response; False if the tenant has none of that id."""
        if self.get(response_id, tenant) is None:
            return False
        self._forget(response_id)
        return True

    def _forget_old(self) -> None:
        oldest_s = self._clock() - MAX_AGE_S
        for response_id, response in tuple(self._responses.items()):
            if response.stored_s >= oldest_s:
                return
            self._forget(response_id)

    def _forget(self, response_id: str) -> None:
        self._size -= self._responses.pop(response_id).size
