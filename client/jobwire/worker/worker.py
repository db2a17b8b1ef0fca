"""The worker as its users see it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Literal, TypeVar

import grpc
from grpc import aio

from jobwire._children import refuse_second_worker
from jobwire._connection import ConnectionOptions, Tls, __version__
from jobwire._convert import Timeout, seconds_or_none, to_duration
from jobwire.context import Context
from jobwire.v1.worker_service_pb2 import WorkerSpec
from jobwire.worker.handlers import Handler, Operation, RunMode
from jobwire.worker.held import WorkerStats
from jobwire.worker.host import (
    let_pools_start_afresh,
    loop_factory,
    naming_what_runs_on,
    new_worker_id,
)
from jobwire.worker.life import Life
from jobwire.worker.logs import LogFormat, set_up_logging
from jobwire.worker.memory import Growth, calm_the_collector
from jobwire.worker.opening import Way, open_life
from jobwire.worker.processes import ProcessOptions, ProcessPool
from jobwire.worker.running import Running
from jobwire.worker.settings import WorkerSettings
from jobwire.worker.stopping import Leaving
from jobwire.worker.telling import BUILD_VARIABLE, MAX_BUILD_BYTES, status_metadata

log = logging.getLogger("jobwire.worker")

F = TypeVar("F", bound=Handler)


class Worker:
    """Takes jobs from queues and runs them with its handlers.

        worker = Worker(queues=["images"])

        @worker.operation("image.thumbnail")
        def thumbnail(context):
            context.progress(0.5, "half way")
            return {"width": 120}

        worker.run()

    It survives restarts of the broker. On SIGTERM or SIGINT it takes no more jobs, lets running
    ones finish within `shutdown_grace_s`, gives back the rest, and leaves.

    Args:
        target: `HOST:PORT`, several of them separated by commas, or a gRPC target. None:
            `JOBWIRE_TARGET`, else 127.0.0.1:50051.
        queues: Where to take jobs from, in turn. 1 to 64.
        labels: What it offers to the requirements of jobs, such as `gpu=a100`. At most 64.
        concurrency: How many jobs it runs at once. 1 to 10000.
        worker_id: Unique among live workers; None: host name, process id and a random part.
        lease_s: The lease that it wants on each job, renewed while it lives. 1 s to 1 h; None:
            the server's.
        shutdown_grace_s: How long jobs may run on after it was told to stop, as seconds or
            timedelta; None: until they end.
        transport: How it talks to the broker: `stream`, one connection that brings jobs as they
            come; `unary`, in single calls, which it also falls back to where a broker has no
            streams.
        prefetch: How many jobs it keeps ready besides those that run, to save round trips. None:
            as many as it ran in the last twentieth of a second, so none for slow jobs; one that
            waits for more than a second goes back to its queue. A fixed number may make jobs wait
            here while other workers are free. Unary: always 0.
        credit_bytes: The most bytes of jobs that a stream may bring ahead of their completion.
            0: no limit.
        processes: How the processes of handlers with `run="process"` are kept; None: the defaults.
        channel: An open asyncio channel to use in place of `target`; it stays the caller's.
        tls: True for TLS with the default authorities, a `Tls` for others.
        credentials: gRPC channel credentials, in place of `tls`.
        metadata: Sent with every call, such as an `authorization` header.
        build_id: Which build of the program it runs, for people: a version or a commit, at most 128
            bytes. None: `JOBWIRE_BUILD_ID`, else none.
        max_abandoned: How many handlers may give their slots to others if they keep running 5 s
            after their job was taken from them, as after a timeout. 0 to 10000; None: as many as
            `concurrency`. Further ones keep their slots, and the worker is shown as STUCK.
        on_error: Called with the context and what the handler raised, for an error tracker; on
            the event loop, so it should be quick.

    Raises:
        ValueError: A time is negative or not a number, or `concurrency`, `prefetch`,
            `credit_bytes`, `build_id`, `max_abandoned`, `queues` or `transport` is out of its
            range.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        queues: Sequence[str] = ("default",),
        labels: Mapping[str, str] | None = None,
        concurrency: int = 10,
        worker_id: str | None = None,
        lease_s: Timeout = None,
        shutdown_grace_s: Timeout = 30.0,
        transport: Literal["stream", "unary"] = "stream",
        prefetch: int | None = None,
        credit_bytes: int = 0,
        processes: ProcessOptions | None = None,
        channel: aio.Channel | None = None,
        tls: bool | Tls = False,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Mapping[str, str] | None = None,
        build_id: str | None = None,
        max_abandoned: int | None = None,
        on_error: Callable[[Context, BaseException], None] | None = None,
    ) -> None:
        if isinstance(queues, str):
            raise ValueError(f"queues is a list of names: [{queues!r}]")
        if not 1 <= concurrency <= 10_000:
            raise ValueError(f"concurrency is {concurrency}; it must be from 1 to 10000")
        if transport not in ("stream", "unary"):
            raise ValueError(f"there is no transport {transport!r}; use 'stream' or 'unary'")
        if prefetch is not None and not 0 <= prefetch <= 10_000 - concurrency:
            raise ValueError(
                f"prefetch is {prefetch}; with the concurrency it must be from 0 to 10000"
            )
        if max_abandoned is not None and not 0 <= max_abandoned <= 10_000:
            raise ValueError(f"max_abandoned is {max_abandoned}; it must be from 0 to 10000")
        if credit_bytes < 0:
            raise ValueError(f"credit_bytes is {credit_bytes}; it must be 0 or more")
        if build_id is None:
            build_id = os.environ.get(BUILD_VARIABLE, "")
        if (size := len(build_id.encode(errors="replace"))) > MAX_BUILD_BYTES:
            raise ValueError(f"build_id has {size} bytes; it must have at most {MAX_BUILD_BYTES}")
        self.build_id = build_id
        self.queues = tuple(queues)
        self.labels = dict(labels or {})
        self.concurrency = concurrency
        self.id = worker_id or new_worker_id()
        self.lease_s = seconds_or_none("lease_s", lease_s)
        if lease_s is not None and self.lease_s is None:
            raise ValueError(f"lease_s is {lease_s}; it must be from 1 s to 1 h")
        self.shutdown_grace_s = seconds_or_none("shutdown_grace_s", shutdown_grace_s)
        self.transport: Literal["stream", "unary"] = transport
        self.prefetch = prefetch
        self.credit_bytes = credit_bytes
        self.processes = processes or ProcessOptions()
        self.max_abandoned = max_abandoned
        self._on_error = on_error
        self._options = ConnectionOptions(
            target=target, tls=tls, credentials=credentials, metadata=dict(metadata or {})
        )
        self._channel = channel
        self._operations: dict[str, Operation] = {}
        self._grows = False
        """True: its memory is watched, because Python's collector was told to run rarely."""
        self._running = Running(self._prepare, lambda: self.shutdown_grace_s)

    def operation(self, name: str, *, run: RunMode = "auto") -> Callable[[F], F]:
        """Register the decorated function as a handler; the function itself stays as it is.

        The handler gets a `Context` and returns the job's result: a JSON value, bytes, a
        protobuf message or None. It may raise `Retry` or `Fatal`; any other exception is a
        failure that is tried again under the job's retry policy. It is stopped, as by a
        cancellation, when the job's execution timeout or deadline passes.

        Args:
            name: The operation.
            run: `async` for async functions, on the worker's event loop; `thread`; `process`,
                for CPU work, with functions that another process can import; `auto`: async for
                async functions, otherwise thread.

        Raises:
            ValueError: `name` already has a handler.
            TypeError: The function can't be run that way.
        """

        def register(function: F) -> F:
            if name in self._operations:
                raise ValueError(f"the operation {name!r} already has a handler")
            self._operations[name] = Operation.of(name, function, run)
            return function

        return register

    @property
    def operations(self) -> Sequence[str]:
        """The operations that it has handlers for."""
        return tuple(self._operations)

    @property
    def stats(self) -> WorkerStats:
        """What it has done since its last start."""
        return self._running.stats

    def tell(self, entries: Mapping[str, str | int | float]) -> None:
        """Tell the broker of the worker, for people and programs that list workers: a temperature,
        the model that it has loaded, why it is slow.

        It replaces what was told before, and is told anew whenever the worker starts or finds
        another server; newer words overtake older ones. From any thread, and before the start as
        well. Where the broker is too old to keep it, the log says so.

        Args:
            entries: At most 16; keys are 1 to 63 letters, digits and `. _ / -`, values texts of at
                most 256 bytes, or numbers. Empty: nothing.

        Raises:
            TypeError: A value is neither a text nor a number.
            ValueError: There are too many entries, or one is out of its bounds.
        """
        self._running.tell(status_metadata(entries))

    def connect_to(self, target: str | None = None, *, tls: bool | Tls | None = None) -> None:
        """Replace the target or TLS settings; takes effect with the next start."""
        if target is not None:
            self._options = replace(self._options, target=target)
        if tls is not None:
            self._options = replace(self._options, tls=tls)

    def run(self, *, log_level: str = "info", log_format: LogFormat = "text") -> None:
        """Work until SIGTERM, SIGINT or `stop()`. Blocks.

        In the main thread it owns the process. It handles the signals. It makes Python's garbage
        collector run less often, and by the memory used, unless `gc.set_threshold` was called
        before. It makes `multiprocessing` start children by `forkserver`, unless a start method was
        set or the environment has GRPC_ENABLE_FORK_SUPPORT=false. In another thread only `stop()`
        ends it. If the application has not set up logging, the log goes to standard error.

        Args:
            log_level: The level of that log: `debug`, `info`, `warning` or `error`.
            log_format: `text`, or `json` for a JSON object in each line.

        Raises:
            CallError: The broker refused the worker.
            RuntimeError: It has no handlers.
        """
        set_up_logging(log_level, log_format)
        let_pools_start_afresh()
        self._grows = calm_the_collector()
        with naming_what_runs_on(), asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self.serve())

    async def serve(self) -> None:
        """Work until SIGTERM, SIGINT, `stop()`, a drain by the broker, or the task is cancelled.

        A second signal ends the grace of running jobs. Where there are no signals, as in a thread,
        use `stop()`.

        Raises:
            CallError: The broker refused the worker.
            RuntimeError: It has no handlers.
        """
        await self._running.serve(self.start)

    async def start(self) -> None:
        """Register the worker and begin to take jobs. Starting a started worker does nothing.

        It waits until a server answers. First, if there are handlers for processes, it starts a
        process that imports them.

        Raises:
            CallError: The broker refused the worker.
            RuntimeError: It has no handlers, or runs on another event loop, or was stopped before
                it had started; or a process for handlers does not start; or this process is such a
                one, or a child of multiprocessing, and imports the script that runs the worker: put
                `worker.run()` under `if __name__ == "__main__":`.
        """
        if self._running.is_started:
            return
        refuse_second_worker()
        if not self._operations:
            raise RuntimeError("the worker has no handlers: decorate one with @worker.operation")
        await self._running.start()
        log.info("%s", self._introduction())

    def stop(self, *, hurry: asyncio.Event | None = None) -> Leaving:
        """Take no more jobs, let running ones finish, give back the rest, and leave.

        It begins at once, whether it is awaited or not, and may be called from any thread, event
        loop or signal handler, any number of times. It does nothing if the worker does not run.

        Args:
            hurry: Ends the grace of running jobs when set; an event of the worker's event loop.

        Returns:
            The end under way: `await worker.stop()`, or `worker.stop().wait()` in a thread.
        """
        return self._running.stop(hurry)

    def _introduction(self) -> str:
        """Return in one line what it is, serves and talks to."""
        operations, queues = ", ".join(self._operations), ", ".join(self.queues)
        kind = "operation" if len(self._operations) == 1 else "operations"
        many = "queue" if len(self.queues) == 1 else "queues"
        return (
            f"serving the {kind} {operations} of the {many} {queues} at {self._options.address}:"
            f" concurrency {self.concurrency}, worker {self.id}"
        )

    async def _prepare(self) -> Life:
        processes = ProcessPool(self.processes)
        try:
            await processes.prepare(
                operation.function
                for operation in self._operations.values()
                if operation.mode == "process"
            )
            return await open_life(self._way(), self._settings(), processes)
        except BaseException:
            await processes.close()
            raise

    def _way(self) -> Way:
        return Way(
            connection=self._options,
            channel=self._channel,
            transport=self.transport,
            credit_bytes=self.credit_bytes,
        )

    def _settings(self) -> WorkerSettings:
        return WorkerSettings(
            spec=self._spec(),
            operations=self._operations,
            prefetch=self.prefetch,
            max_abandoned=(self.concurrency if self.max_abandoned is None else self.max_abandoned),
            growth=Growth() if self._grows else None,
            on_error=self._on_error,
            # A channel of the caller does not tell where it leads.
            connection=self._options if self._channel is None else None,
        )

    async def __aenter__(self) -> Worker:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def _spec(self) -> WorkerSpec:
        return WorkerSpec(
            worker_id=self.id,
            queues=self.queues,
            operations=list(self._operations),
            labels=self.labels,
            concurrency=self.concurrency,
            lease_duration=None if self.lease_s is None else to_duration(self.lease_s),
            client=f"jobwire-python/{__version__}",
            build_id=self.build_id,
        )
