"""The replicas as an application of Ray Serve: `import_path: loire.fleet.ray.app:build`."""

import os
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from ray import serve

from loire.base.config import EngineOptions
from loire.fleet.messages import encode
from loire.fleet.ray.args import Args
from loire.fleet.ray.policy import OCCUPANCY, QUEUED_TOKENS
from loire.fleet.replica import EngineReplica

DEPLOYMENT = "engine"
MOST_FRONTS = 1000


class RayReplica:
    """One engine. RUNNING, to Ray, means that its model is loaded."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, model: str, options: dict[str, Any]
    ) -> None:
        self._replica = await EngineReplica.create(self.name(), model, EngineOptions(**options))

    def name(self) -> str:
        """By which fronts call it."""
        return str(serve.get_replica_context().replica_id.unique_id)

    def describe(self) -> bytes:
        """What it tells a front first; nothing while it has no engine."""
        joined = self._replica.joined
        return encode([] if joined is None else [joined])

    def processes(self) -> tuple[str, int, int | None]:
        """(its name, this process, the engine's)."""
        return self.name(), os.getpid(), self._replica.supervisor.pid

    async def attach(
        self, front: str, wire_version: int, *, to: str
    ) -> AsyncGenerator[bytes, None]:
        """Everything that a front is told; see EngineReplica."""
        async for data in self._replica.attach(front, wire_version):
            yield data

    async def deliver(self, front: str, data: bytes, *, to: str) -> None:
        """Take what a front sends."""
        self._replica.deliver(front, data)

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
        """Ray awaits this when the replica leaves."""
        if hasattr(self, "_replica"):
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
        max_ongoing_requests=MOST_FRONTS,
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=args.grace_period_s,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        request_router_config={"request_router_class": "loire.fleet.ray.router:ToOne"},
        **scaling,
    )
    return deployment.bind(args.model, asdict(args.engine_options()))
