"""Calls of one replica by its name. Ray's own routers choose for us; fronts have chosen already.

In a module of its own, as Ray imports it by path while the app is built.
"""

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class ToOne(RequestRouter):  # type: ignore[misc]
    """A call with an argument `to` goes to the replica of that name, any other to whoever is first.

    No FIFOMixin: with it a replica that was chosen for one call is given to another.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas; none while the one that is wanted is not there."""
        if pending_request is not None:
            # Else Ray asks again at once for as long as there is none, which stops all other calls.
            pending_request.routing_context.should_backoff = True
        to = None if pending_request is None else pending_request.kwargs.get("to")
        if to is None:
            return [candidate_replicas] if candidate_replicas else []
        found = [r for r in candidate_replicas if r.replica_id.unique_id == to]
        return [found] if found else []
