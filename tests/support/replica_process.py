"""A replica without a model, in a process of its own: prints where it lets fronts in."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from dataclasses import astuple

from loire.engine.pulse import BEAT_S
from loire.engine.wire import Beat
from loire.fleet.door import ReplicaDoor
from loire.fleet.messages import encode, read_to_replica
from support.fake_replica import FakeReplica

STEP_S = 0.005


class Replica:
    """What a door uses of an EngineReplica, for one front at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fake = FakeReplica(name)

    async def attach(self, front: str, wire_version: int) -> AsyncGenerator[bytes, None]:
        self.fake = FakeReplica(self.name)  # nothing is left of what a front had before
        stepping = asyncio.create_task(self._step(self.fake))
        try:
            async for message in self.fake.messages():
                yield encode([message])
        finally:
            stepping.cancel()

    def deliver(self, front: str, data: bytes) -> None:
        self.fake.send(*read_to_replica(data))

    async def _step(self, fake: FakeReplica) -> None:
        for number in range(10**9):
            await asyncio.sleep(STEP_S)
            fake.step()
            if number % int(BEAT_S / STEP_S / 2) == 0:
                fake.say(Beat())


async def main() -> None:
    door = ReplicaDoor(Replica(sys.argv[1]))  # type: ignore[arg-type]
    print(json.dumps(astuple(await door.open("127.0.0.1"))), flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until its parent ends


if __name__ == "__main__":
    asyncio.run(main())
