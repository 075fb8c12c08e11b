"""The application of replicas in a cluster: put there if nobody has, and waited for, with words
about what it waits for. Ray itself says nothing, however long replicas find no room.
"""

import asyncio
import logging
import time
from typing import Any

import ray
from ray import serve

from loire.base.errors import EngineError
from loire.fleet.ray.app import DEPLOYMENT, build
from loire.fleet.ray.args import APP, Args
from loire.fleet.ray.room import Resources, asked, lacking

log = logging.getLogger("loire.fleet")

POLL_S = 0.5
TELL_S = 10.0
"""Between two lines of the log while there is no replica yet."""


async def deployed(args: Args) -> Any:
    """The handle of the replicas, once there is one. Deploys them if there is no application of
    that name; others may still be on their way.

    Raises EngineError if the replicas cannot start.
    """
    is_ours = await asyncio.to_thread(_deploy, args)
    began_s = told_s = time.monotonic()
    while not (num_running := await asyncio.to_thread(_num_running)):
        now_s = time.monotonic()
        if now_s - told_s >= TELL_S:
            told_s = now_s
            lack = await asyncio.to_thread(lack_of, args) if is_ours else ""
            log.warning("no replica is ready after %.0f s%s", now_s - began_s, lack and f"; {lack}")
        await asyncio.sleep(POLL_S)
    log.info("replicas that are ready: %d", num_running)
    return serve.get_deployment_handle(DEPLOYMENT, APP)


def lack_of(args: Args) -> str:
    """What the cluster lacks for all replicas; empty if it has everything."""
    return lacking(args, _machines())


def _deploy(args: Args) -> bool:
    """Whether it was done here."""
    if APP in serve.status().applications:
        log.info("the cluster has an application %r: using its replicas", APP)
        return False
    log.info("asking Ray for %s", asked(args))
    if lack := lack_of(args):
        log.warning("the cluster is too small: %s", lack)
    target = serve.RunTarget(target=build(args), name=APP, route_prefix=None)
    try:
        serve.run_many([target], wait_for_applications_running=False)
    except RuntimeError as error:
        raise EngineError(f"Ray could not start the replicas: {error}") from error
    return True


def _num_running() -> int:
    """Replicas that can be attached to. Raises EngineError if there will be none."""
    application = serve.status().applications.get(APP)
    if application is None:
        raise EngineError(f"the application {APP!r} was removed from the cluster")
    deployments = application.deployments.values()
    if application.status == "DEPLOY_FAILED":
        # With the end of a traceback, where what a replica raised is told.
        messages = [application.message, *(each.message for each in deployments)]
        reason = [line for message in messages for line in message.splitlines() if line][-1]
        raise EngineError(f"Ray could not start the replicas: {reason}")
    return sum(each.replica_states.get("RUNNING", 0) for each in deployments)


def _machines() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
