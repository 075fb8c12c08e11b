"""Where a front's requests are: each in the journal of one replica, or of none."""

import logging
from collections.abc import Callable, Mapping, Sequence

from loire.base.messages import EngineRequest, SequenceUpdate
from loire.engine.journal import Entry, Journal
from loire.fleet.member import Member
from loire.fleet.placement import Placement, PrefixChains, num_tokens_to_compute

log = logging.getLogger("loire.fleet")


class Homes:
    """Requests, and the replicas that have them.

    members: the replicas, by name; others keep that. on_placed: told when there is something to
    send. on_updates: given the news of requests that end here.
    """

    def __init__(
        self,
        placement: Placement,
        members: Mapping[str, Member],
        on_placed: Callable[[], None],
        on_updates: Callable[[Sequence[SequenceUpdate]], None],
    ) -> None:
        self.num_moves = 0
        """Requests that went on elsewhere."""
        self.homeless = Journal()
        """Of what nobody takes yet."""
        self._placement = placement
        self._members = members
        self._on_placed = on_placed
        self._on_updates = on_updates
        self._where: dict[str, Member] = {}
        self._numbers: dict[str, str] = {}
        """Of requests that have given something: of the replica where they began."""

    def journals(self) -> list[Journal]:
        """All of them."""
        return [self.homeless, *(member.journal for member in self._members.values())]

    @property
    def placed_ids(self) -> tuple[str, ...]:
        """Requests that a replica has."""
        return tuple(self._where)

    def member_of(self, request_id: str) -> Member | None:
        """The replica that has a request."""
        return self._where.get(request_id)

    def add(self, request: EngineRequest) -> None:
        """A new request: place it."""
        if request.request_id in self._where:
            raise ValueError(f"request id {request.request_id!r} is in use")
        self.homeless.add(request)
        self._find_home(request.request_id)

    def began(self, request_id: str, member: Member) -> None:
        """A request has given something there."""
        if request_id not in self._numbers and member.joined is not None:
            self._numbers[request_id] = member.joined.numbers

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._placement.end(request_id)
        self.homeless.remove(request_id)
        self._where.pop(request_id, None)
        self._numbers.pop(request_id, None)

    def fail(self, culprit: Entry) -> None:
        """End a request that killed its engines, and is in no journal any more."""
        request_id = culprit.request.request_id
        log.error("request %s killed %d engines: failed", request_id, culprit.strikes)
        message = (
            f"{culprit.strikes} engines died while they computed this request ({request_id}): it "
            f"is not tried again"
        )
        self._end_with_error(culprit, message)

    def settle(self, adapter: str | None = None) -> None:
        """A replica is new, and has nothing to do: place what has no home, what is on replicas that
        will stop, and what nothing is computed of yet. adapter: of requests for it alone."""

        def concerns(entry: Entry) -> bool:
            return adapter is None or entry.request.adapter == adapter

        for request_id in self.homeless.request_ids:
            if concerns(self.homeless.entry(request_id)):
                self._find_home(request_id)
        for request_id, member in tuple(self._where.items()):
            entry = member.journal.entry(request_id)
            if concerns(entry) and (member.draining or not entry.begun):
                self.move(request_id, member)

    def leave(self, member: Member) -> None:
        """A replica has lost all that it had."""
        for request_id in member.journal.request_ids:
            entry = member.give_away(request_id)
            assert entry is not None
            self.num_moves += 1
            self._take_home(entry)

    def move(self, request_id: str, member: Member) -> None:
        """Place a request anew that a replica has; it stays there if there is no better one."""
        self._placement.end(request_id)
        entry = member.journal.entry(request_id)
        target = self._place(entry)
        if target is None or target is member:
            return
        given = member.give_away(request_id)
        assert given is entry
        self._where[request_id] = target
        target.journal.adopt(entry)
        self.num_moves += 1
        self._on_placed()

    def _find_home(self, request_id: str) -> None:
        """Place a request that has no home; it stays without one if there is no replica."""
        entry = self.homeless.give_away(request_id)
        assert entry is not None
        self._take_home(entry)

    def _take_home(self, entry: Entry) -> None:
        request_id = entry.request.request_id
        self._where.pop(request_id, None)
        member = self._place(entry)
        if member is None and (refusal := self._refusal(entry.request.adapter)):
            self._end_with_error(entry, f"the adapter cannot be loaded: {refusal}")
            return
        if member is None:
            self.homeless.adopt(entry)
            return
        self._where[request_id] = member
        member.journal.adopt(entry)
        self._on_placed()

    def _place(self, entry: Entry) -> Member | None:
        request = entry.to_send()
        numbers = self._numbers.get(request.request_id, "")
        name = self._placement.place(
            request.request_id,
            PrefixChains(request),
            num_tokens_to_compute(request),
            numbers=numbers,
        )
        return None if name is None else self._members[name]

    def _refusal(self, adapter: str) -> str:
        """Why no replica can serve an adapter; empty if one can, or has not looked yet."""
        members = [m for m in self._members.values() if m.joined is not None and not m.draining]
        refusals = [member.refused.get(adapter, "") for member in members]
        return refusals[0] if refusals and all(refusals) else ""

    def _end_with_error(self, entry: Entry, message: str) -> None:
        """Of a request that is in no journal any more."""
        request_id = entry.request.request_id
        self.forget(request_id)
        self._on_updates(
            [
                SequenceUpdate(request_id, choice, finish_reason="error", error=message)
                for choice in range(len(entry.outputs))
                if choice not in entry.ended
            ]
        )
