"""Calls of one replica by its name. Ray's own routers choose for us; fronts have chosen already.

In a module of its own, as Ray imports it by path while the app is built.
"""

from ray.serve.exceptions import RayServeException
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class ToOne(RequestRouter):  # type: ignore[misc]
    """A call with an argument `to` goes to the replica of that name, any other to whoever is first.

    A call to a replica that is not there fails at once: Ray tries few calls at a time, and those
    that nobody can take would keep all others waiting for ever. No FIFOMixin: with it a replica
    that was chosen for one call is given to another.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas."""
        if pending_request is None or (to := pending_request.kwargs.get("to")) is None:
            return [candidate_replicas]
        # Else Ray asks again without a pause while a replica is busy, which stops all other calls.
        pending_request.routing_context.should_backoff = True
        found = [r for r in candidate_replicas if r.replica_id.unique_id == to]
        if not found and not pending_request.future.done():
            pending_request.future.set_exception(RayServeException(f"there is no replica {to}"))
        # Ray looks whether a call is over when it is offered a replica.
        return [found or candidate_replicas]
