"""AdminService: operators."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from jobwire.v1 import admin_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.decisions.paging import decode_token, encode_token
from jobwire_server.domain.errors import WorkerNotFound
from jobwire_server.domain.model import Worker, WorkerStatus
from jobwire_server.domain.server_info import ServerFacts
from jobwire_server.servicers import bulk, convert
from jobwire_server.servicers.checks import Checker
from jobwire_server.servicers.queue_config import check_config

MAX_WATCHED = 1_000
_STATUSES = (0, *(int(status) for status in WorkerStatus))


class AdminService:
    """Converts, asks the router, and converts back."""

    def __init__(self, router: Router, facts: ServerFacts) -> None:
        self._router = router
        self._facts = facts

    async def ListQueues(
        self, request: admin_service_pb2.ListQueuesRequest, context: object
    ) -> admin_service_pb2.ListQueuesResponse:
        """Lists the queues, page by page."""
        checker = Checker()
        most = checker.count("page_size", request.page_size, 1, 1000, 100)
        checker.raise_if_any()
        token = request.page_token
        after = str(decode_token("queues", token, 1)[0]) if token else ""
        queues = await self._router.operators.list_queues(after, most)
        return admin_service_pb2.ListQueuesResponse(
            queues=[convert.queue(item, detail=False) for item in queues],
            next_page_token=(
                encode_token("queues", queues[-1].name) if len(queues) == most else ""
            ),
        )

    async def GetQueue(
        self, request: admin_service_pb2.GetQueueRequest, context: object
    ) -> admin_service_pb2.GetQueueResponse:
        """Returns one queue."""
        queue = await self._router.operators.get_queue(_queue(request.queue, required=False))
        return admin_service_pb2.GetQueueResponse(queue=convert.queue(queue, detail=True))

    async def PauseQueue(
        self, request: admin_service_pb2.PauseQueueRequest, context: object
    ) -> admin_service_pb2.PauseQueueResponse:
        """Stops deliveries."""
        queue = await self._router.operators.set_paused(_queue(request.queue, required=True), True)
        return admin_service_pb2.PauseQueueResponse(queue=convert.queue(queue, detail=True))

    async def ResumeQueue(
        self, request: admin_service_pb2.ResumeQueueRequest, context: object
    ) -> admin_service_pb2.ResumeQueueResponse:
        """Starts deliveries again."""
        queue = await self._router.operators.set_paused(_queue(request.queue, required=True), False)
        return admin_service_pb2.ResumeQueueResponse(queue=convert.queue(queue, detail=True))

    async def ListWorkers(
        self, request: admin_service_pb2.ListWorkersRequest, context: object
    ) -> admin_service_pb2.ListWorkersResponse:
        """Lists the workers, page by page."""
        checker = Checker()
        most = checker.count("page_size", request.page_size, 1, 1000, 100)
        if request.queue:
            checker.queue("queue", request.queue)
        if request.status not in _STATUSES:
            checker.add("status", "must be one of the statuses a worker can have")
        checker.raise_if_any()
        scope = f"workers:{request.queue}:{int(request.status)}"
        token = request.page_token
        after = str(decode_token(scope, token, 1)[0]) if token else ""
        workers = await self._router.operators.list_workers(after, most)
        return admin_service_pb2.ListWorkersResponse(
            workers=[
                self._convert(item, leases=False)
                for item in workers
                if (not request.queue or request.queue in item.spec.queues)
                and (not request.status or request.status == item.status.value)
            ],
            next_page_token=(
                encode_token(scope, workers[-1].spec.worker_id) if len(workers) == most else ""
            ),
        )

    async def GetWorker(
        self, request: admin_service_pb2.GetWorkerRequest, context: object
    ) -> admin_service_pb2.GetWorkerResponse:
        """Returns one worker with its leases."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        checker.raise_if_any()
        item = await self._router.operators.get_worker(request.worker_id)
        if item is None:
            raise WorkerNotFound(request.worker_id)
        return admin_service_pb2.GetWorkerResponse(worker=self._convert(item, leases=True))

    async def ConfigureQueue(
        self, request: admin_service_pb2.ConfigureQueueRequest, context: object
    ) -> admin_service_pb2.ConfigureQueueResponse:
        """Changes the settings of a queue."""
        checker = Checker()
        name = checker.queue("queue", request.queue, required=True)
        changes = check_config(checker, request.config)
        checker.raise_if_any()
        queue = await self._router.operators.configure_queue(name, changes)
        return admin_service_pb2.ConfigureQueueResponse(queue=convert.queue(queue, detail=True))

    async def WatchQueues(
        self, request: admin_service_pb2.WatchQueuesRequest, context: object
    ) -> AsyncIterator[admin_service_pb2.WatchQueuesResponse]:
        """Streams queues with their depths and rates."""
        checker = Checker()
        if len(request.queues) > MAX_WATCHED:
            checker.add("queues", f"may name at most {MAX_WATCHED}, not {len(request.queues)}")
        for at, name in enumerate(request.queues[:MAX_WATCHED]):
            checker.queue(f"queues[{at}]", name, required=True)
        interval_ms = 1000
        if request.HasField("interval"):
            interval_ms = checker.duration_ms("interval", request.interval, 200, 3_600_000)
        checker.raise_if_any()
        async for queues in self._router.watch_queues(request.queues, interval_ms / 1000):
            yield admin_service_pb2.WatchQueuesResponse(
                queues=[convert.queue(item, detail=True) for item in queues]
            )

    async def WatchWorkers(
        self, request: admin_service_pb2.WatchWorkersRequest, context: object
    ) -> AsyncIterator[admin_service_pb2.WatchWorkersResponse]:
        """Streams workers as they come, change and go."""
        checker = Checker()
        if request.queue:
            checker.queue("queue", request.queue)
        checker.raise_if_any()
        async for item in self._router.watch_workers():
            answer = admin_service_pb2.WatchWorkersResponse()
            if isinstance(item, Worker):
                if request.queue and request.queue not in item.spec.queues:
                    continue
                answer.worker.CopyFrom(self._convert(item, leases=False))
            elif isinstance(item, str):
                answer.left = item
            else:
                convert.set_moment(answer.bookmark.time, self._router.clock.now_ms())
                answer.bookmark.caught_up = item is not None
            yield answer

    async def DrainWorker(
        self, request: admin_service_pb2.DrainWorkerRequest, context: object
    ) -> admin_service_pb2.DrainWorkerResponse:
        """Lets one worker finish and leave."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        checker.raise_if_any()
        await self._router.set_worker_status(request.worker_id, WorkerStatus.DRAINING)
        item = await self._router.operators.get_worker(request.worker_id)
        if item is None:
            raise WorkerNotFound(request.worker_id)
        return admin_service_pb2.DrainWorkerResponse(worker=self._convert(item, leases=True))

    async def PurgeJobs(
        self, request: admin_service_pb2.PurgeJobsRequest, context: object
    ) -> AsyncIterator[Any]:
        """Forgets many jobs before their retention ends."""
        checker = Checker()
        wanted = bulk.job_filter(checker, request.filter)
        for at, state in enumerate(wanted.states):
            if not state.terminal:
                text = f"must be a terminal state, not {state.name}; cancel such jobs first"
                checker.add(f"filter.states[{at}]", text)
        most = bulk.most_jobs(checker, request.max_jobs)
        checker.raise_if_any()
        steps = self._router.bulk.purge(wanted, dry_run=request.dry_run, max_jobs=most)
        async for answer in bulk.answers(steps, admin_service_pb2.PurgeJobsResponse):
            yield answer

    async def GetServerInfo(
        self, request: admin_service_pb2.GetServerInfoRequest, context: object
    ) -> admin_service_pb2.GetServerInfoResponse:
        """Tells what this server is."""
        facts = self._facts
        limits = facts.limits
        return admin_service_pb2.GetServerInfoResponse(
            server_id=facts.server_id,
            version=facts.version,
            started_at=convert.moment(facts.started_at_ms),
            store_engine=facts.store.engine,
            store_version=facts.store.version,
            store_embedded=facts.store.embedded,
            store_durability=facts.store.durability,
            store_time=convert.moment(self._router.clock.now_ms()),
            limits=admin_service_pb2.ServerLimits(
                max_payload_bytes=limits.max_payload_bytes,
                max_result_bytes=limits.max_result_bytes,
                max_batch_jobs=limits.max_batch_jobs,
                max_message_bytes=limits.max_message_bytes,
                max_output_bytes=limits.max_output_bytes,
            ),
            processes=facts.processes,
            process_index=facts.process_index,
            store_problem=self._router.condition.problem,
        )

    def _convert(self, item: Worker, *, leases: bool) -> admin_service_pb2.Worker:
        return convert.worker(item, self._router.lease_ms(item.spec), leases=leases)


def _queue(name: str, *, required: bool) -> str:
    checker = Checker()
    name = checker.queue("queue", name, required=required)
    checker.raise_if_any()
    return name
