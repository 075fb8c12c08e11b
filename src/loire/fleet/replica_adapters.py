"""The adapters of a replica: what its fronts announce, looked at before there is work for it.

Fronts know nothing of each other. An adapter stays as long as one of them has a name for it, and is
pinned if one of them wants that. Its directory must be here as it is where the front is; what it is
follows from its content, so that another one there is noticed.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loire.base.errors import LoireError
from loire.base.messages import AnnouncedAdapter
from loire.checkpoint.adapter import open_adapter
from loire.checkpoint.description import ModelDescription
from loire.fleet.messages import AdapterChecked

Answer = Callable[[AdapterChecked], None]


class ReplicaAdapters:
    """Used on one event loop. tell: tells the engine of an adapter, or of what changed."""

    def __init__(
        self, description: ModelDescription, tell: Callable[[AnnouncedAdapter], None]
    ) -> None:
        self._description = description
        self._tell = tell
        self._announced: dict[str, dict[str, AnnouncedAdapter]] = {}
        """By content, then by front."""
        self._checked: set[str] = set()
        """Those that can be served, by content."""
        self._checking: set[asyncio.Task[None]] = set()

    def announce(self, front: str, adapter: AnnouncedAdapter, answer: Answer) -> None:
        """A front has an adapter, or one no more. It is answered when its files were read, which
        happens once."""
        identity = adapter.identity
        fronts = self._announced.setdefault(identity, {})
        if adapter.withdrawn:
            fronts.pop(front, None)
        else:
            fronts[front] = adapter
        if identity in self._checked:
            self._settle(adapter)
            answer(AdapterChecked(identity))
        else:
            task = asyncio.create_task(self._check(adapter, answer))
            self._checking.add(task)
            task.add_done_callback(self._checking.discard)

    def leave(self, front: str) -> None:
        """A front is gone, with all names that it had."""
        for fronts in tuple(self._announced.values()):
            adapter = fronts.pop(front, None)
            if adapter is not None and adapter.identity in self._checked:
                self._settle(adapter)

    def _settle(self, adapter: AnnouncedAdapter) -> None:
        """Tell the engine what all fronts together want of an adapter."""
        fronts = self._announced.get(adapter.identity, {})
        here = next(iter(fronts.values()), adapter)
        is_pinned = any(announced.pinned for announced in fronts.values())
        self._tell(replace(here, pinned=is_pinned, withdrawn=not fronts))
        if not fronts:
            self._announced.pop(adapter.identity, None)

    async def _check(self, adapter: AnnouncedAdapter, answer: Answer) -> None:
        refusal = await asyncio.to_thread(self._refusal, adapter)
        if not refusal:
            self._checked.add(adapter.identity)
            self._settle(adapter)
        elif not self._announced.get(adapter.identity):
            self._announced.pop(adapter.identity, None)
        answer(AdapterChecked(adapter.identity, refusal))

    def _refusal(self, adapter: AnnouncedAdapter) -> str:
        """Why it cannot be served here; empty if it can."""
        try:
            found = open_adapter(Path(adapter.path), self._description)
        except (LoireError, OSError) as error:
            return str(error)
        if found.identity == adapter.identity:
            return ""
        return (
            f"{adapter.path} is {found.identity[:12]} here, and not {adapter.identity[:12]}: its "
            f"files differ between machines, or were changed; load it again"
        )
