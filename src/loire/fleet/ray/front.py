"""A front of a fleet on Ray: it follows the replicas that Ray keeps, and attaches to each."""

import asyncio
import logging
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from loire.base.errors import ConfigError
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.store import resolve_model
from loire.fleet.client import FleetClient, frontend_of
from loire.fleet.door import Address, DoorChannel
from loire.fleet.messages import Joined, read_from_replica
from loire.fleet.model_digest import model_digest
from loire.fleet.ray.args import Args
from loire.fleet.ray.cluster import connect, take_signals_back
from loire.fleet.ray.deployment import deployed, lack_of

log = logging.getLogger("loire.fleet")

_GONE = (RayError, RayServeException)
"""What calls raise of replicas that are not there, or all of them."""

LOOK_S = 1.0
"""Between two looks at which replicas there are."""
ANSWER_S = 5.0
"""A look that takes longer is given up: some replica hangs, and Ray will see to it."""
TELL_S = 60.0
"""Between two lines of the log about replicas that find no room."""
LEAVE_S = 3.0
"""For streams to end when the front stops."""


class RayFleetClient(FleetClient):
    """A FleetClient whose replicas are those of Ray's deployment."""

    def attach(self, handle: Any, args: Args, *, owns_cluster: bool) -> None:
        """Begin to follow the deployment. owns_cluster: it is for this front, and close() ends Ray,
        too."""
        self.handle = handle
        self._args = args
        self._owns_cluster = owns_cluster
        self._told_s = time.monotonic()
        self._follows: dict[str, asyncio.Task[None]] = {}
        self._drained: set[str] = set()
        """Those that Ray did not name any more."""
        self._looking = asyncio.create_task(self._look())

    @property
    def plan_lines(self) -> tuple[str, ...]:
        """How memory is used in a replica, in two lines."""
        return self._first.plan_lines

    async def close(self) -> None:
        """Leave the replicas; open streams end with EngineError."""
        await super().close()
        tasks = [self._looking, *self._follows.values()]
        for task in tasks:
            task.cancel()
        # A stream from a replica that stops, too, may not hear that it was cancelled.
        _, pending = await asyncio.wait(tasks, timeout=LEAVE_S)
        if pending:
            log.info("%d streams did not end in %g s: left as they are", len(pending), LEAVE_S)
        # Else Ray goes on telling of what calls wait, to a cluster that is gone.
        await asyncio.wait_for(self.handle.shutdown_async(), LEAVE_S)
        if self._owns_cluster:
            await asyncio.to_thread(ray.shutdown)

    async def _look(self) -> None:
        while True:
            try:
                doors = await self._doors()
                if doors is not None:
                    self._follow(doors)
                await self._tell_lack()
            except Exception:
                log.exception("looking for replicas failed")
            await asyncio.sleep(LOOK_S)

    async def _tell_lack(self) -> None:
        """Say now and then that replicas find no room, while that is so."""
        is_whole = len(self.link.replicas) >= self._args.replicas
        if not self._owns_cluster or is_whole or time.monotonic() - self._told_s < TELL_S:
            return
        self._told_s = time.monotonic()
        if lack := await asyncio.to_thread(lack_of, self._args):
            log.warning("%d replicas are ready; %s", len(self.link.replicas), lack)

    async def _doors(self) -> dict[str, Address] | None:
        """Those of the replicas that Ray would send calls to; None if that cannot be told now."""
        asking = asyncio.create_task(broadcast(self.handle, "door"))
        # Not wait_for(), which would wait for as long as Ray takes to notice that it was cancelled.
        await asyncio.wait({asking}, timeout=ANSWER_S)
        if not asking.done() or asking.cancelled():
            asking.cancel()  # Ray cancels it where a replica leaves meanwhile
            return None
        try:
            return {name: Address(*where) for name, *where in asking.result()}
        except DeploymentUnavailableError:
            return {}  # all of them stop, or start
        except _GONE as error:
            log.info("replicas were not told: %s", type(error).__name__)
            return None

    def _follow(self, doors: dict[str, Address]) -> None:
        for name, task in tuple(self._follows.items()):
            if task.done():
                del self._follows[name]
                self._drained.discard(name)
                if not task.cancelled() and (error := task.exception()):
                    log.error("replica %s was left: %s", name, error)
            elif name not in doors:
                # Ray sends nothing there any more: it stops, or is being replaced.
                self._drained.add(name)
                self.link.drain(name)
                if not self.link.num_requests_of(name):
                    task.cancel()
            elif name in self._drained:
                self._drained.discard(name)
                task.cancel()  # it stays after all: attach anew
        for name in doors.keys() - self._follows.keys():
            where, timeout_s = doors[name], self._args.replica_timeout_s
            log.info("replica %s lets servers in at %s port %d", name, where.host, where.port)
            channel = DoorChannel(name, where, self.link.name, timeout_s)
            self._follows[name] = asyncio.create_task(self.link.follow(channel))


async def broadcast(handle: Any, method: str) -> list[Any]:
    """Every replica's answer. Raises RayError or RayServeException if one, or all, have none."""
    answers: list[Any] = await handle.broadcast(method).results_async()
    return answers


async def join_fleet(args: Args, request_timeout_s: float | None = None) -> RayFleetClient:
    """Join or start a cluster, deploy the replicas if nobody has, and attach to them.

    Raises ConfigError if Ray cannot be had, or serves another model there; LoireError if the model
    cannot be loaded.
    """
    owns_cluster = await asyncio.to_thread(connect)
    take_signals_back()
    try:
        path = await asyncio.to_thread(resolve_model, args.model)
        handle = await deployed(args)
        first = await _first_joined(handle)
        checkpoint = await asyncio.to_thread(open_checkpoint, path)
        if await asyncio.to_thread(model_digest, checkpoint) != first.model:
            raise ConfigError(
                f"the replicas serve {first.config.model}, which is not {args.model} as it is here"
            )
        options = args.engine_options()
        frontend = await asyncio.to_thread(frontend_of, checkpoint, first, options)
        client = RayFleetClient(
            frontend, first, checkpoint.description, request_timeout_s=request_timeout_s
        )
    except BaseException:
        if owns_cluster:
            await asyncio.to_thread(ray.shutdown)
        raise
    client.attach(handle, args, owns_cluster=owns_cluster)
    return client


async def _first_joined(handle: Any) -> Joined:
    while True:
        data = await handle.options(method_name="describe").remote()
        for message in read_from_replica(data):
            if isinstance(message, Joined):
                return message
        await asyncio.sleep(LOOK_S)
