"""How Ray Serve asks our routing, in each process that sends requests to replicas."""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from server.scale_out.fleet import Member, fleet_of, read_report


class PrefixRouter(RequestRouter):
    """Serve copies this class by its code, so that it keeps nothing itself."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._look()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None or not pending_request.args:  # not about a sequence
            return [candidate_replicas]
        self._look()
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        request, future = pending_request.metadata.internal_request_id, pending_request.future
        ranked = fleet_of(self.app_name).rank(request, pending_request.args[0], lambda: not future.cancelled())
        return [[by_name[name]] for name in ranked if name in by_name]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        fleet_of(self.app_name).routed(pending_request.metadata.internal_request_id, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        fleet_of(self.app_name).completed(internal_request_id, replica_id.unique_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._look()

    def _look(self) -> None:
        fleet_of(self.app_name).see(
            {
                replica.replica_id.unique_id: Member(
                    self.replica_queue_len_cache.get(replica.replica_id) or 0, read_report(replica.routing_stats)
                )
                for replica in self.curr_replicas.values()
            }
        )
