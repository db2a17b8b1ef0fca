"""AdminService: operators."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from jobwire.v1 import admin_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.features import FEATURES
from jobwire_server.domain.model import Worker, WorkerStatus
from jobwire_server.domain.server_info import ServerFacts
from jobwire_server.servicers import convert, many_jobs
from jobwire_server.servicers.checks import Checker
from jobwire_server.servicers.queue_config import check_config
from jobwire_server.watch.queue_watch import CaughtUp

MAX_WATCHED = 1_000
MAX_REVISION = 1 << 50
_STATUSES = (0, *(int(status) for status in WorkerStatus))


class AdminService:
    """Convert, ask the router, and convert back."""

    def __init__(self, router: Router, facts: ServerFacts) -> None:
        self._router = router
        self._facts = facts

    async def ListQueues(
        self, request: admin_service_pb2.ListQueuesRequest, context: object
    ) -> admin_service_pb2.ListQueuesResponse:
        """List the queues, page by page."""
        checker = Checker()
        most = checker.count("page_size", request.page_size, 1, 1000, 100)
        checker.raise_if_any()
        queues, token = await self._router.operators.list_queues(most, request.page_token)
        return admin_service_pb2.ListQueuesResponse(
            queues=[convert.queue(item, detail=False) for item in queues], next_page_token=token
        )

    async def GetQueue(
        self, request: admin_service_pb2.GetQueueRequest, context: object
    ) -> admin_service_pb2.GetQueueResponse:
        """Return one queue."""
        queue = await self._router.operators.get_queue(_queue(request.queue, required=False))
        return admin_service_pb2.GetQueueResponse(queue=convert.queue(queue, detail=True))

    async def PauseQueue(
        self, request: admin_service_pb2.PauseQueueRequest, context: object
    ) -> admin_service_pb2.PauseQueueResponse:
        """Stop deliveries."""
        name = _queue(request.queue, required=True)
        queue = await self._router.operators.set_paused(name, True, create=request.allow_missing)
        return admin_service_pb2.PauseQueueResponse(queue=convert.queue(queue, detail=True))

    async def ResumeQueue(
        self, request: admin_service_pb2.ResumeQueueRequest, context: object
    ) -> admin_service_pb2.ResumeQueueResponse:
        """Start deliveries again."""
        queue = await self._router.operators.set_paused(_queue(request.queue, required=True), False)
        return admin_service_pb2.ResumeQueueResponse(queue=convert.queue(queue, detail=True))

    async def ListWorkers(
        self, request: admin_service_pb2.ListWorkersRequest, context: object
    ) -> admin_service_pb2.ListWorkersResponse:
        """List the workers, page by page."""
        checker = Checker()
        most = checker.count("page_size", request.page_size, 1, 1000, 100)
        if request.queue:
            checker.queue("queue", request.queue)
        if request.status not in _STATUSES:
            checker.add("status", "must be one of the statuses a worker can have")
        checker.raise_if_any()
        workers, token = await self._router.operators.list_workers(
            most,
            request.page_token,
            queue=request.queue,
            status=WorkerStatus(request.status) if request.status else None,
        )
        return admin_service_pb2.ListWorkersResponse(
            workers=[self._convert(item, leases=False) for item in workers], next_page_token=token
        )

    async def GetWorker(
        self, request: admin_service_pb2.GetWorkerRequest, context: object
    ) -> admin_service_pb2.GetWorkerResponse:
        """Return one worker with its leases."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        checker.raise_if_any()
        item = await self._router.operators.get_worker(request.worker_id)
        return admin_service_pb2.GetWorkerResponse(worker=self._convert(item, leases=True))

    async def ConfigureQueue(
        self, request: admin_service_pb2.ConfigureQueueRequest, context: object
    ) -> admin_service_pb2.ConfigureQueueResponse:
        """Change the settings of a queue."""
        checker = Checker()
        name = checker.queue("queue", request.queue, required=True)
        checker.number("revision", request.revision, 0, MAX_REVISION)
        changes, retry = check_config(checker, request.config, request.update_mask)
        checker.raise_if_any()
        queue = await self._router.operators.configure_queue(
            name, changes, retry, revision=request.revision, create=request.allow_missing
        )
        return admin_service_pb2.ConfigureQueueResponse(queue=convert.queue(queue, detail=True))

    async def DeleteQueue(
        self, request: admin_service_pb2.DeleteQueueRequest, context: object
    ) -> admin_service_pb2.DeleteQueueResponse:
        """Remove a queue with everything of it."""
        await self._router.deletions.delete(_queue(request.queue, required=True))
        return admin_service_pb2.DeleteQueueResponse()

    async def WatchQueues(
        self, request: admin_service_pb2.WatchQueuesRequest, context: object
    ) -> AsyncIterator[admin_service_pb2.WatchQueuesResponse]:
        """Stream queues with their depths and rates."""
        checker = Checker()
        names = checker.queues("queues", request.queues, MAX_WATCHED)
        interval_ms = 1000
        if request.HasField("interval"):
            interval_ms = checker.duration_ms("interval", request.interval, 200, 3_600_000)
        checker.raise_if_any()
        async for queues in self._router.watch_queues(names, interval_ms / 1000):
            yield admin_service_pb2.WatchQueuesResponse(
                queues=[convert.queue(item, detail=True) for item in queues]
            )

    async def WatchWorkers(
        self, request: admin_service_pb2.WatchWorkersRequest, context: object
    ) -> AsyncIterator[admin_service_pb2.WatchWorkersResponse]:
        """Stream workers as they come, change and go."""
        checker = Checker()
        if request.queue:
            checker.queue("queue", request.queue)
        checker.raise_if_any()
        async for item in self._router.watch_workers(request.queue):
            yield self._worker_step(item)

    async def DrainWorker(
        self, request: admin_service_pb2.DrainWorkerRequest, context: object
    ) -> admin_service_pb2.DrainWorkerResponse:
        """Let one worker finish and leave."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        checker.raise_if_any()
        item = await self._router.drain_worker(request.worker_id)
        return admin_service_pb2.DrainWorkerResponse(worker=self._convert(item, leases=True))

    async def PurgeJobs(
        self, request: admin_service_pb2.PurgeJobsRequest, context: object
    ) -> AsyncIterator[Any]:
        """Forget many jobs before their retention ends."""
        checker = Checker()
        wanted = many_jobs.job_filter(checker, request.filter)
        for at, state in enumerate(wanted.states):
            if not state.terminal:
                text = f"must be a terminal state, not {state.name}; cancel such jobs first"
                checker.add(f"filter.states[{at}]", text)
        most = many_jobs.most_jobs(checker, request.max_jobs)
        checker.raise_if_any()
        steps = self._router.bulk.purge(wanted, dry_run=request.dry_run, max_jobs=most)
        async for answer in many_jobs.answers(steps, admin_service_pb2.PurgeJobsResponse):
            yield answer

    async def GetServerInfo(
        self, request: admin_service_pb2.GetServerInfoRequest, context: object
    ) -> admin_service_pb2.GetServerInfoResponse:
        """Tell what this server is."""
        store_time_ms, problem = self._router.clock.now_ms(), self._router.condition.problem
        return server_info(self._facts, store_time_ms, problem)

    def _worker_step(
        self, item: Worker | CaughtUp | str | None
    ) -> admin_service_pb2.WatchWorkersResponse:
        answer = admin_service_pb2.WatchWorkersResponse()
        if isinstance(item, Worker):
            answer.worker.CopyFrom(self._convert(item, leases=False))
        elif isinstance(item, str):
            answer.left.worker_id = item
        else:
            convert.write_ms(answer.bookmark.time, self._router.clock.now_ms())
            answer.bookmark.caught_up = item is not None
        return answer

    def _convert(self, item: Worker, *, leases: bool) -> admin_service_pb2.Worker:
        return convert.worker(item, self._router.lease_ms(item.spec), leases=leases)


def _queue(name: str, *, required: bool) -> str:
    checker = Checker()
    name = checker.queue("queue", name, required=required)
    checker.raise_if_any()
    return name


def server_info(
    facts: ServerFacts, store_time_ms: int, problem: str
) -> admin_service_pb2.GetServerInfoResponse:
    """Return what a server is, and what is wrong with its store."""
    limits = facts.limits
    return admin_service_pb2.GetServerInfoResponse(
        server_id=facts.server_id,
        version=facts.version,
        started_at=convert.moment(facts.started_at_ms),
        store_engine=facts.store.engine,
        store_version=facts.store.version,
        store_embedded=facts.store.embedded,
        store_durability=facts.store.durability,
        store_time=convert.moment(store_time_ms),
        limits=admin_service_pb2.ServerLimits(
            max_payload_bytes=limits.max_payload_bytes,
            max_result_bytes=limits.max_result_bytes,
            max_batch_jobs=limits.max_batch_jobs,
            max_message_bytes=limits.max_message_bytes,
            max_output_bytes=limits.max_output_bytes,
            max_queues=limits.max_queues,
        ),
        processes=facts.processes,
        process_index=facts.process_index,
        store_problem=problem,
        features=FEATURES,
    )
