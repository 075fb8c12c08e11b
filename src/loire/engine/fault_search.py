"""Which request makes steps fail: the suspects of a failed step are tried in ever smaller groups.

A group is tried by letting nobody else run, until each of its sequences has been computed as far as
the step that failed would have computed it. If a step fails meanwhile, its requests are parted in
two; if it was a single one, that is to blame. Tokens do not depend on company, so nobody else
notices, but for the time it takes.
"""

import logging
from typing import NoReturn

from loire.base.errors import EngineError
from loire.base.messages import SequenceUpdate
from loire.scheduling.scheduler import Scheduler

log = logging.getLogger("loire.engine")

MOST_BLAMED = 8
"""Requests in a row that fail alone, with no step between that succeeds: then it is not them."""

Suspects = dict[str, dict[int, int]]
"""Per request, how far each of its sequences is to be computed before it is cleared."""


class FaultSearch:
    """Finds the culprits among a scheduler's requests."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._groups: list[Suspects] = []
        """The last one is being tried."""
        self._num_blamed = 0

    @property
    def is_on(self) -> bool:
        """Whether somebody is suspected: then one step is in flight at a time."""
        return bool(self._groups)

    def step_failed(
        self, suspects: Suspects, error: Exception, *, others_ended: bool = False
    ) -> list[SequenceUpdate]:
        """A step with these in it failed; the news of the culprit, if that is certain.

        others_ended: it may have been one that is not here any more.
        Raises EngineError if too many requests in a row are blamed.
        """
        tried = self._groups.pop() if self._groups else {}
        others = {name: ends for name, ends in tried.items() if name not in suspects}
        for name, ends in suspects.items():
            earlier = tried.get(name, {})
            suspects[name] = {s: max(end, earlier.get(s, 0)) for s, end in ends.items()} | {
                s: end for s, end in earlier.items() if s not in ends
            }
        if others:
            self._groups.append(others)
        updates: list[SequenceUpdate] = []
        if len(suspects) > 1:
            log.warning("a step of %d requests failed: %r", len(suspects), error)
            names = sorted(suspects)
            middle = len(names) // 2
            for half in (names[middle:], names[:middle]):
                self._groups.append({name: suspects[name] for name in half})
        elif suspects and others_ended:
            self._groups.append(suspects)
        elif suspects:
            [name] = suspects
            if self._num_blamed == MOST_BLAMED:
                self._give_up(error)
            log.error("request %s fails: its step raised", name, exc_info=error)
            self._num_blamed += 1
            updates = self._scheduler.fail(name, f"computing it failed: {_said(error)}")
        self._confine()
        return updates

    def step_succeeded(self) -> None:
        """A step was committed: perhaps the group that is tried is cleared by it."""
        self._num_blamed = 0
        if self._groups and self._is_cleared(self._groups[-1]):
            self.nothing_to_compute()

    def nothing_to_compute(self) -> None:
        """The group that is tried is done: go on to the next one."""
        self._groups.pop()
        self._confine()

    def _give_up(self, error: Exception) -> NoReturn:
        self._num_blamed = 0
        self._groups.clear()
        self._confine()
        raise EngineError(
            f"{MOST_BLAMED + 1} requests in a row failed, each alone: {_said(error)}"
        ) from error

    def _is_cleared(self, group: Suspects) -> bool:
        return all(
            self._scheduler.has_computed(seq_id, end)
            for ends in group.values()
            for seq_id, end in ends.items()
        )

    def _confine(self) -> None:
        self._scheduler.confine(frozenset(self._groups[-1]) if self._groups else None)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
