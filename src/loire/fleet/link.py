"""An EngineLink to many replicas: requests go where they cost the least work, and go on elsewhere
when their replica is lost or stops.

Each replica has a journal (loire.engine.journal) of what it has. When it is lost, others go on with
all of that: clients see a pause. What nobody takes yet waits in a journal without a replica.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import astuple
from itertools import count
from uuid import uuid4

from loire.base.errors import EngineError, RequestError
from loire.base.messages import AdapterCounts, AnnouncedAdapter, EngineRequest, SequenceUpdate
from loire.base.step import StepRecord
from loire.engine.wire import Beat, WireError
from loire.fleet.homes import Homes
from loire.fleet.member import Member, ReplicaChannel, check_sendable
from loire.fleet.messages import (
    AdapterChecked,
    Begun,
    Blocks,
    Draining,
    FromReplica,
    Joined,
    Lost,
    News,
)
from loire.fleet.placement import Placement, Replica
from loire.memory.prefix_names import split

log = logging.getLogger("loire.fleet")


class FleetLink:
    """Used on one event loop.

    on_updates: given the news of each step. accepts: told of a replica before requests go there;
    raises EngineError if it does not belong to this fleet.
    """

    records: Sequence[StepRecord] = ()
    """Steps are recorded where they are computed."""

    def __init__(
        self,
        on_updates: Callable[[Sequence[SequenceUpdate]], None],
        *,
        placement: Placement | None = None,
        accepts: Callable[[Joined], None] = lambda joined: None,
    ) -> None:
        self.name = uuid4().hex[:12]
        """Of this front, among all."""
        self.num_restarts = 0
        """Engines that were lost."""
        self._on_updates = on_updates
        self._accepts = accepts
        self._members: dict[str, Member] = {}
        self._placement = placement or Placement()
        self._homes = Homes(self._placement, self._members, self._flush_soon, on_updates)
        self._announced: dict[str, AnnouncedAdapter] = {}
        """By content: to each replica, before its first request."""
        self._attempts = count()
        self._flush: asyncio.Handle | None = None
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether requests can be taken; also while there is no replica."""
        return not self._closed

    @property
    def is_ready(self) -> bool:
        """Whether there is a replica now that computes."""
        return bool(self.replicas)

    @property
    def replicas(self) -> tuple[Joined, ...]:
        """Those that have an engine."""
        members = self._members.values()
        return tuple(member.joined for member in members if member.joined is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """All that are followed."""
        return tuple(self._members)

    @property
    def num_moves(self) -> int:
        """Requests that went on elsewhere."""
        return self._homes.num_moves

    @property
    def num_requests(self) -> int:
        """Unfinished ones of this front."""
        return sum(len(journal) for journal in self._homes.journals())

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing is computed yet."""
        return sum(journal.num_waiting for journal in self._homes.journals())

    @property
    def num_waiting_sequences(self) -> int:
        """That they ask for: n of each."""
        return sum(journal.num_waiting_sequences for journal in self._homes.journals())

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of those."""
        return sum(journal.num_waiting_tokens for journal in self._homes.journals())

    @property
    def blocks_in_use(self) -> int:
        """KV blocks that requests hold, of all fronts, over all replicas."""
        return sum(member.blocks_in_use for member in self._members.values())

    @property
    def adapters(self) -> AdapterCounts:
        """How memory of adapters stands, over all replicas."""
        each = [astuple(member.adapters) for member in self._members.values()]
        return AdapterCounts(*map(sum, zip(*each, strict=True)))

    # --- an EngineLink ----------------------------------------------------------------------

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Queue requests, all or none. Raises EngineError after close(), RequestError if one cannot
        cross to another machine."""
        if self._closed:
            raise EngineError("the fleet was closed: it takes no more requests")
        try:
            for request in requests:
                check_sendable(request)
        except WireError as error:
            raise RequestError(str(error)) from error
        for request in requests:
            self._homes.add(request)

    def abort(self, request_id: str) -> None:
        """End a request at the next step boundary."""
        member = self._homes.member_of(request_id)
        if member is not None:
            member.abort(request_id)
            self._flush_soon()
        self._homes.forget(request_id)

    def abort_choice(self, request_id: str, choice: int) -> None:
        """End one completion at the next step boundary."""
        member = self._homes.member_of(request_id)
        if member is None:
            self._homes.homeless.end_choice(request_id, choice)
            return
        member.abort_choice(request_id, choice)
        self._flush_soon()
        if request_id not in member.journal:
            self._homes.forget(request_id)

    def announce(self, adapter: AnnouncedAdapter) -> None:
        """From now on requests may name an adapter: all replicas are told, and those that come.

        A request for it goes to those that have answered that they can serve it."""
        self._announced[adapter.identity] = adapter
        for member in self._members.values():
            member.announce([adapter])

    def close(self) -> None:
        """End everything. Unfinished requests get no further news."""
        self._closed = True
        for request_id in self._homes.placed_ids:
            self.abort(request_id)
        self._homes.homeless.clear()
        self._flush_now()

    # --- replicas ---------------------------------------------------------------------------

    async def follow(self, channel: ReplicaChannel) -> None:
        """Use a replica until it is gone; what it had is placed again then. Whatever the channel
        raises is raised, after that."""
        member = Member(channel, self.name)
        if channel.name in self._members:
            raise ValueError(f"replica {channel.name!r} is followed already")
        self._members[channel.name] = member
        try:
            async for message in channel.messages():
                self._take(member, message)
        finally:
            del self._members[channel.name]
            self._lose(member, "it is gone")

    def drain(self, name: str) -> None:
        """A replica will stop, as its keeper says: as if it had said so itself."""
        member = self._members.get(name)
        if member is not None and not member.draining:
            self._drain(member)

    def num_requests_of(self, name: str) -> int:
        """Requests of this front that a replica has."""
        member = self._members.get(name)
        return 0 if member is None else len(member.journal)

    def _take(self, member: Member, message: FromReplica) -> None:
        name = member.channel.name
        match message:
            case News():
                self._take_news(member, message)
            case Begun(wire_ids):
                member.journal.begin(member.own_ids(wire_ids))
            case Blocks(stored, evicted):
                self._placement.changed(name, split(stored), split(evicted))
            case AdapterChecked(identity, refusal):
                self._take_check(member, identity, refusal)
            case Joined():
                self._join(member, message)
            case Lost(reason):
                self._lose(member, reason)
            case Draining():
                self._drain(member)
            case Beat():
                pass  # the channel listens for those

    def _take_news(self, member: Member, news: News) -> None:
        told = []
        self._placement.adapters_in_memory(member.channel.name, news.adapters.num_resident)
        for update, accepted in member.take(news):
            request_id = update.request_id
            self._placement.first_token(request_id, update.num_cached_tokens)
            self._homes.began(request_id, member)
            if request_id not in member.journal:
                self._homes.forget(request_id)
            if accepted is not None:
                told.append(accepted)
        if told:
            self._on_updates(told)
        if member.journal.num_held:
            self._flush_soon()

    def _join(self, member: Member, joined: Joined) -> None:
        try:
            self._accepts(joined)
        except EngineError as error:
            log.error("replica %s is not used: %s", member.channel.name, error)
            return
        if member.joined is not None:
            log.error("replica %s joined twice", member.channel.name)
            return
        config = joined.config
        member.joined = joined
        if member.draining:
            return
        replica = Replica(
            member.channel.name,
            config.num_blocks,
            config.block_size,
            joined.numbers,
            config.computed_by,
            is_sparse=len(config.geometry.groups) > 1,
        )
        self._placement.join(replica)
        log.info("replica %s joined: %d now", replica.name, len(self.replicas))
        self._forget_adapters()
        member.announce(self._announced.values())
        self._homes.settle()

    def _forget_adapters(self) -> None:
        """Those that no name stands for and no request needs."""
        wanted = set().union(*(journal.adapters() for journal in self._homes.journals()))
        for identity, adapter in tuple(self._announced.items()):
            if adapter.withdrawn and identity not in wanted:
                del self._announced[identity]

    def _take_check(self, member: Member, identity: str, refusal: str) -> None:
        """A replica has looked at an adapter: place what waited for that."""
        if refusal:
            log.error("replica %s cannot serve an adapter: %s", member.channel.name, refusal)
            member.refused[identity] = refusal
        else:
            self._placement.adapter_usable(member.channel.name, identity)
        self._homes.settle(identity)

    def _lose(self, member: Member, reason: str) -> None:
        """A replica's engine is gone: others go on with what it had."""
        self._placement.leave(member.channel.name)
        was_there, num_requests = member.joined is not None, len(member.journal)
        culprit = member.lose()
        if was_there and not self._closed and not member.draining:
            self.num_restarts += 1
            log.warning(
                "replica %s is lost: %s; %d requests move",
                member.channel.name,
                reason,
                num_requests,
            )
        if culprit is not None:
            self._homes.fail(culprit)
        self._homes.leave(member)

    def _drain(self, member: Member) -> None:
        """A replica will stop: others go on with what it has, if there are others."""
        member.draining = True
        self._placement.leave(member.channel.name)
        for request_id in member.journal.request_ids:
            self._homes.move(request_id, member)

    def _flush_soon(self) -> None:
        """Send what has come up, once this turn of the loop is over: one message per replica."""
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush = None
        for member in self._members.values():
            member.flush(self._attempts)
