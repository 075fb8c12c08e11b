"""A ReplicaChannel to an EngineReplica of the same event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from loire.fleet.messages import (
    WIRE_VERSION,
    FromReplica,
    Joined,
    ToReplica,
    encode,
    read_from_replica,
)
from loire.fleet.replica import EngineReplica


class DirectChannel:
    """What is sent arrives at once; the stream ends when leave() is called."""

    def __init__(self, replica: EngineReplica, front: str) -> None:
        self.name = replica.name
        self._replica = replica
        self._front = front
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """The replica is gone, as far as the front can see."""
        self._leaving.set()

    async def messages(self) -> AsyncIterator[FromReplica]:
        leaving = asyncio.create_task(self._leaving.wait())
        async with aclosing(self._replica.attach(self._front, WIRE_VERSION)) as stream:
            while not self._leaving.is_set():
                coming = asyncio.ensure_future(anext(stream))
                await asyncio.wait({coming, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
                    break
                for message in read_from_replica(coming.result()):
                    yield message
        leaving.cancel()

    def send(self, *messages: ToReplica) -> None:
        self._replica.deliver(self._front, encode(messages))


async def first_words(replica: EngineReplica) -> Joined:
    """What a replica tells a front that is new."""
    async with aclosing(replica.attach("first", WIRE_VERSION)) as stream:
        [joined] = read_from_replica(await anext(stream))
    assert isinstance(joined, Joined)
    return joined
