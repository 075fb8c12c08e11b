"""The replicas as an application of Ray Serve: `import_path: loire.fleet.ray.app:build`."""

import os
from dataclasses import asdict, astuple
from typing import Any

import ray
from ray import serve

from loire.base.config import EngineOptions
from loire.engine.supervisor import SupervisorOptions
from loire.fleet.door import ReplicaDoor
from loire.fleet.messages import encode
from loire.fleet.ray.args import Args
from loire.fleet.ray.policy import OCCUPANCY, QUEUED_TOKENS
from loire.fleet.replica import EngineReplica

DEPLOYMENT = "engine"
CLOSE_S = 5.0
"""For a replica to end once it has nothing left."""


class RayReplica:
    """One engine. RUNNING, to Ray, means that its model is loaded."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, model: str, options: dict[str, Any], grace_period_s: float, timeout_s: float
    ) -> None:
        self._grace_period_s = grace_period_s
        self._replica = await EngineReplica.create(
            self.name(),
            model,
            EngineOptions(**options),
            supervision=SupervisorOptions(silence_timeout_s=timeout_s),
        )
        self._door = ReplicaDoor(self._replica)
        self._address = await self._door.open(ray.util.get_node_ip_address())

    def name(self) -> str:
        """Among all replicas."""
        return str(serve.get_replica_context().replica_id.unique_id)

    def door(self) -> tuple[str, str, int, str]:
        """(its name, where fronts come in: host, port and secret)."""
        return self.name(), *astuple(self._address)

    def describe(self) -> bytes:
        """What it tells a front first; nothing while it has no engine."""
        joined = self._replica.joined
        return encode([] if joined is None else [joined])

    def processes(self) -> tuple[str, int, int | None]:
        """(its name, this process, the engine's)."""
        return self.name(), os.getpid(), self._replica.supervisor.pid

    def check_health(self) -> None:
        """Raises only when there will be no engine any more: Ray kills what fails here, and an
        engine that died is replaced faster by its supervisor."""
        if self._replica.failure is not None:
            raise self._replica.failure

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the policy looks at."""
        return {
            QUEUED_TOKENS: float(self._replica.queued_tokens),
            OCCUPANCY: self._replica.occupancy,
        }

    async def __del__(self) -> None:
        """Ray awaits this when the replica leaves; what it has goes on elsewhere, or here as long
        as there is no other."""
        if not hasattr(self, "_replica"):
            return  # its model could not be loaded
        await self._replica.drain(self._grace_period_s)
        if hasattr(self, "_door"):
            await self._door.close()
        await self._replica.close()


def build(args: Args) -> serve.Application:
    """The application of some arguments."""
    scaling: dict[str, Any] = {"num_replicas": args.replicas}
    if args.max_replicas is not None:
        scaling = {
            "num_replicas": None,
            "autoscaling_config": {
                "min_replicas": args.replicas,
                "initial_replicas": args.replicas,
                "max_replicas": args.max_replicas,
                "metrics_interval_s": 2.0,
                "look_back_period_s": 6.0,
                "upscale_delay_s": 0.0,
                "downscale_delay_s": 0.0,
                "policy": {
                    "policy_function": "loire.fleet.ray.policy:QueuedTokensPolicy",
                    "policy_kwargs": {"target_queued_tokens": args.queued_tokens},
                },
            },
        }
    deployment = serve.deployment(RayReplica, name=DEPLOYMENT).options(
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=args.grace_period_s + CLOSE_S,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        **scaling,
    )
    options = asdict(args.engine_options())
    return deployment.bind(args.model, options, args.grace_period_s, args.replica_timeout_s)
