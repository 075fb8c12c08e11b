"""One replica as a front sees it: its channel, and the journal of what it has of this front."""

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from loire.base.messages import AdapterCounts, AnnouncedAdapter, EngineRequest, SequenceUpdate
from loire.engine.journal import Entry, Journal
from loire.engine.wire import Abort, Announce, Submit
from loire.fleet.messages import FromReplica, Joined, News, ToReplica, encode


class ReplicaChannel(Protocol):
    """The way to a replica and back. name: of the replica, in the log."""

    name: str

    def messages(self) -> AsyncIterator[FromReplica]:
        """What the replica says, until it is gone."""
        ...

    def send(self, *messages: ToReplica) -> None:
        """Say something; does not wait. What cannot arrive any more is dropped: messages() ends."""
        ...


@dataclass(slots=True, eq=False)
class Member:
    """A replica that a front is attached to.

    Attributes:
        joined: what the replica told of its engine; None while it has none.
        draining: whether it will stop soon.
        adapters: how its engine's memory of adapters stands.
        refused: adapters that it cannot serve, by their content, and why not.
    """

    channel: ReplicaChannel
    front: str
    joined: Joined | None = None
    draining: bool = False
    journal: Journal = field(default_factory=Journal)
    blocks_in_use: int = 0
    num_requests: int = 0
    """Of all fronts."""
    adapters: AdapterCounts = field(default_factory=AdapterCounts)
    refused: dict[str, str] = field(default_factory=dict)
    _aborts: list[Abort] = field(default_factory=list)
    _sent: dict[str, str] = field(default_factory=dict)
    """Request id -> its id on the way."""
    _known: dict[str, str] = field(default_factory=dict)
    """The other way round."""

    def own_ids(self, wire_ids: Iterable[str]) -> list[str]:
        """Ids of requests that this front has sent there, of those ids on the way."""
        return [self._known[wire_id] for wire_id in wire_ids if wire_id in self._known]

    def take(self, news: News) -> list[tuple[SequenceUpdate, SequenceUpdate | None]]:
        """Enter news; each update, and what of it is news to the client, if anything."""
        self.blocks_in_use, self.num_requests = news.blocks_in_use, news.num_requests
        self.adapters = news.adapters
        behind_s = time.monotonic() - news.now_s
        taken = []
        for update in news.updates:
            request_id = self._known.get(update.request_id)
            if request_id is None:
                continue
            first_s = update.first_scheduled_s
            update = replace(
                update,
                request_id=request_id,
                first_scheduled_s=None if first_s is None else first_s + behind_s,
            )
            taken.append((update, self.journal.accept(update)))
            if request_id not in self.journal:
                self._forget(request_id)
        return taken

    def abort(self, request_id: str) -> None:
        """End a request."""
        if self.journal.remove(request_id):
            self._abort(request_id)
        self._forget(request_id)

    def abort_choice(self, request_id: str, choice: int) -> None:
        """End one completion of a request."""
        if self.journal.end_choice(request_id, choice):
            self._abort(request_id, choice)
        if request_id not in self.journal:
            self._forget(request_id)

    def give_away(self, request_id: str) -> Entry | None:
        """Take a request back, to go on elsewhere; None if it is not here."""
        entry = self.journal.give_away(request_id)
        if request_id in self._sent and self.joined is not None:
            self._abort(request_id)
        self._forget(request_id)
        return entry

    def announce(self, adapters: Iterable[AnnouncedAdapter]) -> None:
        """Tell of adapters, before whatever is sent next; it looks at each of them, and answers."""
        if self.joined is None:
            return
        for adapter in adapters:
            self.refused.pop(adapter.identity, None)
            self.channel.send(Announce(adapter))

    def flush(self, attempts: Iterator[int]) -> None:
        """Send what has come up. attempts: numbers that no request was sent with before."""
        submits = [self._submit(entry, next(attempts)) for entry in self._to_send()]
        aborts, self._aborts = self._aborts, []
        if aborts or submits:
            self.channel.send(*aborts, *submits)

    def lose(self) -> Entry | None:
        """Its engine is gone; the request that has now killed its second one, if there is one."""
        self.joined = None
        self.blocks_in_use = self.num_requests = 0
        self.adapters = AdapterCounts()
        self.refused.clear()
        self._aborts.clear()
        self._sent.clear()
        self._known.clear()
        return self.journal.crashed()

    def _to_send(self) -> list[Entry]:
        return [] if self.joined is None else self.journal.next_to_send()

    def _submit(self, entry: Entry, attempt: int) -> Submit:
        request = entry.to_send()
        wire_id = f"{self.front}/{attempt}/{request.request_id}"
        self._forget(request.request_id)
        self._sent[request.request_id] = wire_id
        self._known[wire_id] = request.request_id
        return Submit(replace(request, request_id=wire_id), tuple(sorted(entry.ended)))

    def _abort(self, request_id: str, choice: int | None = None) -> None:
        self._aborts.append(Abort(self._sent[request_id], choice))

    def _forget(self, request_id: str) -> None:
        wire_id = self._sent.pop(request_id, None)
        if wire_id is not None:
            del self._known[wire_id]


def front_of(wire_id: str) -> str:
    """The front that a request on the way belongs to."""
    return wire_id.partition("/")[0]


def check_sendable(request: EngineRequest) -> None:
    """Raise WireError if a request cannot cross."""
    encode([Submit(request)])
