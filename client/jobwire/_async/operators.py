"""The operators' part of the client: queues, workers, servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any, Literal, TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from jobwire._async.calls import STREAM_LIMIT_S, AsyncCalls, NextCall
from jobwire._convert import Seconds, to_duration
from jobwire._repeat import Deadline
from jobwire.models import RetryPolicy
from jobwire.operators import QueueInfo, ServerInfo, WorkerChange, WorkerInfo, WorkerStatus
from jobwire.v1 import admin_service_pb2 as admin_pb2

Span: TypeAlias = Seconds | Literal["default"] | None
"""A setting that is a span of time; None: no change."""


class AsyncOperatorMethods:
    """Methods for operators; see `AsyncClient`."""

    _calls: AsyncCalls
    _timeout_s: float | None
    _reconnect_s: float | None

    async def queues(self) -> AsyncIterator[QueueInfo]:
        """Yield all queues by name, without rates."""
        request = admin_pb2.ListQueuesRequest()
        while True:
            answer = await self._calls.unary(self._calls.admin.ListQueues, request, self._timeout_s)
            for proto in answer.queues:
                yield QueueInfo.from_proto(proto)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    async def queue(self, name: str = "default") -> QueueInfo:
        """Return one queue with depths, rates and totals."""
        request = admin_pb2.GetQueueRequest(queue=name)
        answer = await self._calls.unary(self._calls.admin.GetQueue, request, self._timeout_s)
        return QueueInfo.from_proto(answer.queue)

    async def pause(self, queue: str, *, allow_missing: bool = False) -> QueueInfo:
        """Stop handing out the jobs of a queue, which still accepts new ones.

        Args:
            queue: Its name.
            allow_missing: Create the queue, paused, if there is none.

        Raises:
            QueueNotFound: There is none.
        """
        request = admin_pb2.PauseQueueRequest(queue=queue, allow_missing=allow_missing)
        answer = await self._calls.unary(self._calls.admin.PauseQueue, request, self._timeout_s)
        return QueueInfo.from_proto(answer.queue)

    async def resume(self, queue: str) -> QueueInfo:
        """Hand out the jobs of a queue again."""
        request = admin_pb2.ResumeQueueRequest(queue=queue)
        answer = await self._calls.unary(self._calls.admin.ResumeQueue, request, self._timeout_s)
        return QueueInfo.from_proto(answer.queue)

    async def delete_queue(self, queue: str) -> None:
        """Remove a queue with its settings, its totals, its event log and its ended jobs; nothing
        if there is none. Its next job creates it anew.

        Raises:
            QueueInUse: It has live jobs or schedules.
        """
        request = admin_pb2.DeleteQueueRequest(queue=queue)
        await self._calls.unary(self._calls.admin.DeleteQueue, request, self._timeout_s)

    async def workers(
        self, *, queue: str = "", status: WorkerStatus = WorkerStatus.UNSPECIFIED
    ) -> AsyncIterator[WorkerInfo]:
        """Yield the workers by id, without their leases.

        Args:
            queue: Only workers that serve it; empty: all.
            status: Only workers of this status; UNSPECIFIED: all.
        """
        request = admin_pb2.ListWorkersRequest(queue=queue, status=status.to_proto())
        while True:
            answer = await self._calls.unary(
                self._calls.admin.ListWorkers, request, self._timeout_s
            )
            for proto in answer.workers:
                yield WorkerInfo.from_proto(proto)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    async def worker(self, worker_id: str) -> WorkerInfo:
        """Return one worker with the jobs that it holds."""
        request = admin_pb2.GetWorkerRequest(worker_id=worker_id)
        answer = await self._calls.unary(self._calls.admin.GetWorker, request, self._timeout_s)
        return WorkerInfo.from_proto(answer.worker)

    async def drain_worker(self, worker_id: str) -> WorkerInfo:
        """Let one worker finish its jobs and leave; it gets no new ones."""
        request = admin_pb2.DrainWorkerRequest(worker_id=worker_id)
        answer = await self._calls.unary(self._calls.admin.DrainWorker, request, self._timeout_s)
        return WorkerInfo.from_proto(answer.worker)

    async def server_info(self) -> ServerInfo:
        """Return what the answering server is, its store, and its limits."""
        answer = await self._calls.unary(
            self._calls.admin.GetServerInfo, admin_pb2.GetServerInfoRequest(), self._timeout_s
        )
        return ServerInfo.from_proto(answer)

    async def configure_queue(
        self,
        queue: str,
        *,
        event_log_entries: int | None = None,
        max_output_bytes: int | None = None,
        retry: RetryPolicy | Literal["default"] | None = None,
        max_pending_jobs: int | None = None,
        max_live_bytes: int | None = None,
        retain_succeeded: Span = None,
        retain_ended: Span = None,
        max_ended_jobs: int | None = None,
        max_ended_bytes: int | None = None,
        retain_output: Span = None,
        retain_event_log: Span = None,
        priority_ageing: Span = None,
        default_priority: int | None = None,
        revision: int = 0,
        allow_missing: bool = False,
    ) -> QueueInfo:
        """Change the settings of a queue; what is None stays as it is.

        Spans are seconds or timedeltas, or `"default"`, which removes the setting.

        Args:
            queue: Its name.
            event_log_entries: How many changes of jobs its event log keeps, which lets
                `watch_jobs` resume without a gap. 0 to 1000000; 0: none.
            max_output_bytes: The most output that its jobs keep together; 0: the server's limit.
            retry: What the unset retry fields of its jobs mean. Of it, too, what is None stays as
                it is; `"default"` removes all of them.
            max_pending_jobs: The most jobs that may be SCHEDULED or PENDING together; above it
                submissions are refused with `QueueFull`. 0: no limit.
            max_live_bytes: The most bytes of specs that its live jobs may hold together, refused
                in the same way. 0: no limit.
            retain_succeeded: How long SUCCEEDED jobs are kept. 0 to 10 years; by default 1 day
                unless the server is configured otherwise.
            retain_ended: How long FAILED, CANCELLED and EXPIRED jobs are kept; by default 14 days.
            max_ended_jobs: The most ended jobs that are kept; those that would be forgotten first
                go earlier. 0: no limit.
            max_ended_bytes: The most bytes that their specs and results take. 0: no limit.
            retain_output: How long the output of an ended job is kept; by default as long as it.
            retain_event_log: The age above which entries of the event log are dropped; by default
                none.
            priority_ageing: A job that has waited this long counts as one priority higher, twice as
                long as two higher, and so on. 100 ms to 30 days; by default none.
            default_priority: The priority of jobs that name none, from now on. 0 to 255.
            revision: The `QueueInfo.revision` that the change was made from; 0: whatever it is now.
            allow_missing: Create the queue if there is none.

        Raises:
            QueueNotFound: There is none.
            ChangedMeanwhile: The queue's settings are at another revision.
        """
        config = admin_pb2.QueueConfig(
            event_log_entries=event_log_entries,
            max_output_bytes=max_output_bytes,
            retry=None if retry is None or retry == "default" else retry.to_proto(),
            max_pending_jobs=max_pending_jobs,
            max_live_bytes=max_live_bytes,
            retain_succeeded=_setting(retain_succeeded),
            retain_ended=_setting(retain_ended),
            max_ended_jobs=max_ended_jobs,
            max_ended_bytes=max_ended_bytes,
            retain_output=_setting(retain_output),
            retain_event_log=_setting(retain_event_log),
            priority_ageing=_setting(priority_ageing),
            default_priority=default_priority,
        )
        spans = {
            "retain_succeeded": retain_succeeded,
            "retain_ended": retain_ended,
            "retain_output": retain_output,
            "retain_event_log": retain_event_log,
            "priority_ageing": priority_ageing,
            "retry": retry,
        }
        request = admin_pb2.ConfigureQueueRequest(
            queue=queue,
            config=config,
            update_mask=_mask(config, [name for name, to in spans.items() if to == "default"]),
            revision=revision,
            allow_missing=allow_missing,
        )
        answer = await self._calls.unary(self._calls.admin.ConfigureQueue, request, self._timeout_s)
        return QueueInfo.from_proto(answer.queue)

    async def watch_queues(
        self, queues: Iterable[str] = (), *, interval: Seconds = 1.0
    ) -> AsyncGenerator[QueueInfo]:
        """Yield every queue with its depths and rates, then each again when they have changed.

        It reconnects by itself, and continues until the caller leaves it.

        Args:
            queues: These, at most 1000; empty: all.
            interval: How often the server checks, as seconds or timedelta. 200 ms to 1 hour.
        """
        request = admin_pb2.WatchQueuesRequest(
            queues=queues, interval=to_duration(interval, "interval")
        )

        def next_call() -> NextCall:
            return self._calls.admin.WatchQueues, request, STREAM_LIMIT_S

        async with aclosing(self._stream(next_call)) as answers:
            async for answer in answers:
                for proto in answer.queues:
                    yield QueueInfo.from_proto(proto)

    async def watch_workers(self, queue: str = "") -> AsyncGenerator[WorkerChange]:
        """Yield every worker, then each one that comes, changes, is lost or leaves.

        It reconnects by itself, and then yields each worker as it stands, and those that left
        meanwhile. It continues until the caller leaves it.

        Args:
            queue: Only workers that serve it; empty: all.
        """
        request = admin_pb2.WatchWorkersRequest(queue=queue)
        known: set[str] = set()
        present: set[str] = set()

        def next_call() -> NextCall:
            present.clear()
            return self._calls.admin.WatchWorkers, request, STREAM_LIMIT_S

        async with aclosing(self._stream(next_call)) as answers:
            async for answer in answers:
                kind = answer.WhichOneof("event")
                if kind == "worker":
                    worker = WorkerInfo.from_proto(answer.worker)
                    known.add(worker.id)
                    present.add(worker.id)
                    yield WorkerChange(worker.id, worker)
                elif kind == "left":
                    known.discard(answer.left.worker_id)
                    yield WorkerChange(answer.left.worker_id, None)
                elif kind == "bookmark" and answer.bookmark.caught_up:
                    for worker_id in sorted(known - present):
                        known.discard(worker_id)
                        yield WorkerChange(worker_id, None)

    def _stream(self, next_call: Any) -> AsyncGenerator[Any]:
        return self._calls.stream(
            next_call,
            deadline=Deadline(None),
            late="",
            first_s=self._timeout_s,
            reconnect_s=self._reconnect_s,
        )


def _setting(span: Span) -> Duration | None:
    return None if span is None or span == "default" else to_duration(span)


def _mask(config: admin_pb2.QueueConfig, defaults: Iterable[str]) -> FieldMask | None:
    """Return the names of the settings that a message sets, and of those that go back to their
    defaults; None if there are none.
    """
    paths = [field.name for field, _ in config.ListFields() if field.name != "retry"]
    paths += [f"retry.{field.name}" for field, _ in config.retry.ListFields()]
    paths += defaults
    return FieldMask(paths=paths) if paths else None
