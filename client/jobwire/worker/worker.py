"""The worker as its users see it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, TypeVar

import grpc
from grpc import aio

from jobwire._children import refuse_second_worker
from jobwire._connection import ConnectionOptions, Tls, __version__
from jobwire._convert import Timeout, seconds_or_none, to_duration
from jobwire._retry import Backoff
from jobwire.context import Context
from jobwire.errors import CallError
from jobwire.v1.worker_service_pb2 import WorkerSpec
from jobwire.worker import forks
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
from jobwire.worker.processes import ProcessOptions, ProcessPool
from jobwire.worker.stopping import Leaving, Signals
from jobwire.worker.transport import START_PATIENCE_S, StreamTransport, Transport, UnaryTransport

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

    It outlives restarts of the broker. On SIGTERM or SIGINT it takes no more jobs, lets those
    that run finish for `shutdown_grace_s`, gives back the rest, and leaves.

    Args:
        target: `HOST:PORT`, several of them separated by commas, or a gRPC target. None:
            `JOBWIRE_TARGET`, else 127.0.0.1:50051.
        queues: Where to take jobs from, in turn. 1 to 64.
        labels: What it offers to the requirements of jobs, such as `gpu=a100`. At most 64.
        concurrency: How many jobs it runs at once. 1 to 10000.
        worker_id: Unique among live workers; None: host name, process id and a random part.
        lease_s: The lease that it wants on each job, renewed while it lives. 1 s to 1 h; None:
            the server's.
        shutdown_grace_s: How long jobs may go on once it has been told to stop, as seconds or
            timedelta; None: until they end.
        transport: How it talks to the broker: `stream`, one connection that brings jobs as they
            come; `unary`, in single calls, which it also falls back to where a broker has no
            streams.
        prefetch: How many jobs it keeps ready beside those that run, to save each the round
            trip. None: what it lately ran in a twentieth of a second, none at all where jobs take
            longer, and a job that waits for more than a second goes back to its queue. A number
            is kept to, so that jobs may wait here while other workers are free. Unary: always 0.
        credit_bytes: The most bytes of jobs that a stream may bring ahead of their completion.
            0: no limit.
        processes: How the processes of handlers with `run="process"` are kept; None: the defaults.
        channel: An open asyncio channel to use in place of `target`; it stays the caller's.
        tls: True for TLS with the default authorities, a `Tls` for others.
        credentials: gRPC channel credentials, in place of `tls`.
        metadata: Sent with every call, such as an `authorization` header.
        max_abandoned: How many handlers that go on 5 s after their job was taken from them, as
            after a timeout, give their places to others; they are left to themselves. 0 to 10000;
            None: as many as `concurrency`. Further ones keep their places: the worker is then
            shown as STUCK.
        on_error: Called with the context and what the handler raised, for an error tracker; on
            the event loop, so it should be quick.

    Raises:
        ValueError: A time is negative or no number, or `concurrency`, `prefetch`, `credit_bytes`,
            `max_abandoned`, `queues` or `transport` is out of its range.
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
        self._life: Life | None = None
        self._grows = False
        """Its memory is looked after, for Python's collector was told to look seldom."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """The one that it runs on, from the beginning of its start to its end."""
        self._opening: asyncio.Task[Life] | None = None
        self._wanted: asyncio.Event | None = None
        """Set to end `serve`, while it runs."""
        self._leavings: list[Leaving] = []
        """Those who wait for its end."""
        self._chores: set[asyncio.Future[Any]] = set()
        self._last_stats = WorkerStats()

    def operation(self, name: str, *, run: RunMode = "auto") -> Callable[[F], F]:
        """Registers the decorated function as a handler; the function itself stays as it is.

        The handler gets a `Context` and returns the job's result: a JSON value, bytes, a
        protobuf message or None. It may raise `Retry` or `Fatal`; any other exception is a
        failure that is tried again under the job's retry policy. It is stopped, as by a
        cancellation, when the job's execution timeout or deadline passes.

        Args:
            name: The jobs that it takes.
            run: `async` for async functions, on the worker's event loop; `thread`; `process`,
                for CPU work, with functions that another process can import; `auto`: async for
                async functions, otherwise thread.

        Raises:
            ValueError: `name` has a handler already.
            TypeError: The function can't be run that way.
        """

        def register(function: F) -> F:
            if name in self._operations:
                raise ValueError(f"the operation {name!r} has a handler already")
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
        return self._life.stats if self._life is not None else self._last_stats

    def connect_to(self, target: str | None = None, *, tls: bool | Tls | None = None) -> None:
        """Replaces what is given of the way to the servers; takes effect with the next start."""
        if target is not None:
            self._options = replace(self._options, target=target)
        if tls is not None:
            self._options = replace(self._options, tls=tls)

    def run(self, *, log_level: str = "info", log_format: LogFormat = "text") -> None:
        """Works until SIGTERM, SIGINT or `stop()`; blocks.

        In the main thread it takes the process over: beside the signals, it has Python's garbage
        collector look less often, and by the memory used, unless `gc.set_threshold` was called
        before, and `multiprocessing` start its children by `forkserver`, unless a start method was
        set or the environment has GRPC_ENABLE_FORK_SUPPORT=false. In another thread only `stop()`
        ends it. Where the application has not set up logging, the log goes to standard error.

        Args:
            log_level: The least that is written then: `debug`, `info`, `warning` or `error`.
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
        """Works until SIGTERM, SIGINT, `stop()`, the broker's wish, or the task's cancellation.

        A second signal ends the grace of running jobs. Where signals can't be had, as in a thread
        or on a loop without them, `stop()` is the way to end it.

        Raises:
            CallError: The broker refused the worker.
            RuntimeError: It has no handlers.
        """
        self._enter()
        wanted = self._wanted = asyncio.Event()
        hurry = self._hurry

        def on_signal() -> None:
            if wanted.is_set():
                log.warning("told to stop again: running jobs are given back now")
                hurry.set()
            else:
                log.info("told to stop: finishing running jobs")
                wanted.set()

        starting = asyncio.create_task(self.start())
        stopping = asyncio.create_task(wanted.wait())
        try:
            with Signals(on_signal):
                tasks: set[asyncio.Task[Any]] = {starting, stopping}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    return
                await starting
                assert self._life is not None
                await self._life.wait_for_end(stopping)
                await self._close()
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            self._wanted = None
            await self._close()

    async def start(self) -> None:
        """Registers the worker and begins to take jobs. Starting a started worker does nothing.

        It waits as long as no server answers. Before, it starts a process for handlers if it has
        such, and has it import them.

        Raises:
            CallError: The broker refused the worker.
            RuntimeError: It has no handlers, or runs on another event loop, or was stopped before
                it had started; or a process for handlers does not start; or this process is such a
                one, or a child of multiprocessing, and imports the script that runs the worker: put
                `worker.run()` under `if __name__ == "__main__":`.
        """
        if self._life is not None:
            return
        refuse_second_worker()
        if not self._operations:
            raise RuntimeError("the worker has no handlers: decorate one with @worker.operation")
        self._enter()
        self._last_stats = WorkerStats()
        opening = self._opening = asyncio.create_task(self._prepare(), name="worker-start")
        try:
            self._life = await opening
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise RuntimeError("the worker was stopped before it had started") from None
        finally:
            self._opening = None
            if self._life is None:
                opening.cancel()
                await asyncio.wait({opening})
                if self._wanted is None:
                    self._left(None)
        log.info("%s", self._introduction())

    def stop(self, *, hurry: asyncio.Event | None = None) -> Leaving:
        """Takes no more jobs, lets those that run finish, gives back the rest, and leaves.

        It begins at once, whether it is awaited or not, and may be called from any thread, any
        event loop and signal handlers, as often as you like. A worker that does not run is left as
        it is.

        Args:
            hurry: Ends the grace of running jobs when set; of the worker's own event loop.

        Returns:
            The end under way: `await worker.stop()`, or `worker.stop().wait()` in a thread.
        """
        leaving, loop = Leaving(), self._loop
        try:
            if loop is None or forks.is_child:
                leaving.end()
            else:
                loop.call_soon_threadsafe(self._begin_to_stop, leaving, hurry)
        except RuntimeError:  # the loop was closed under the worker
            leaving.end()
        return leaving

    def _enter(self) -> None:
        """Takes the running loop for the worker's own."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError("the worker runs already, on another event loop")
        if self._loop is None:
            self._loop, self._hurry = loop, asyncio.Event()

    def _begin_to_stop(self, leaving: Leaving, hurry: asyncio.Event | None) -> None:
        if self._loop is None:
            leaving.end()  # it has ended meanwhile
            return
        self._leavings.append(leaving)
        if hurry is not None:
            passing_on = asyncio.ensure_future(_pass_on(hurry, self._hurry))
            self._chores.add(passing_on)
        if self._wanted is not None:
            self._wanted.set()  # serve() does the rest
        elif self._opening is not None:
            self._opening.cancel()
        else:
            self._chores.add(asyncio.ensure_future(self._close()))

    async def _close(self) -> None:
        """Ends the life that there is, and waits for it."""
        life = self._life
        if life is None or life.closing:
            if life is None and self._opening is None and self._wanted is None:
                self._left(None)
            return
        error: BaseException | None = None
        try:
            await life.close(self.shutdown_grace_s, self._hurry)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._last_stats, self._life = life.stats, None
            log.info("worker %s has left", self.id)
            if self._wanted is None:
                self._left(error)

    def _left(self, error: BaseException | None) -> None:
        """Lets go of the loop, and tells those who wait for the end."""
        self._loop = None
        chores, self._chores = self._chores, set()
        current = asyncio.current_task()
        for chore in chores:
            if chore is not current:
                chore.cancel()
        leavings, self._leavings = self._leavings, []
        for leaving in leavings:
            leaving.end(error)

    def _introduction(self) -> str:
        """What it is, serves and talks to, in a line."""
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
            return await self._open(processes)
        except BaseException:
            await processes.close()
            raise

    async def _open(self, processes: ProcessPool) -> Life:
        if self.transport == "unary":
            return await self._open_unary(processes)
        backoff = Backoff(max_s=2.0)
        doubtful_until = asyncio.get_running_loop().time() + START_PATIENCE_S
        while True:
            stream = StreamTransport(self._options, self._channel, self.credit_bytes)
            try:
                return await self._live(stream, processes, self.prefetch)
            except CallError as error:
                if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
            try:
                life = await self._open_unary(processes, patience_s=0)
            except CallError as neither:
                # This is no word of a broker, and may pass.
                late = asyncio.get_running_loop().time() > doubtful_until
                if neither.code is not grpc.StatusCode.UNIMPLEMENTED or late:
                    raise
                log.warning("%s does not seem to be a broker: %s", self._options.address, neither)
                await asyncio.sleep(backoff.next_s(neither.retry_after_s))
            else:
                log.warning("the broker has no worker streams; making single calls in their place")
                return life

    async def _open_unary(
        self, processes: ProcessPool, patience_s: float = START_PATIENCE_S
    ) -> Life:
        unary = UnaryTransport(self._options, self._channel, patience_s)
        return await self._live(unary, processes, 0)

    async def _live(
        self, transport: Transport, processes: ProcessPool, prefetch: int | None
    ) -> Life:
        return await Life.open(
            self._spec(),
            self._operations,
            transport,
            processes,
            prefetch,
            # A channel of the caller's says nothing of where it leads.
            self._options if self._channel is None else None,
            Growth() if self._grows else None,
            self.concurrency if self.max_abandoned is None else self.max_abandoned,
            self._on_error,
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
        )


async def _pass_on(one: asyncio.Event, other: asyncio.Event) -> None:
    await one.wait()
    other.set()


def _is_cancelled() -> bool:
    """Tells the cancellation of this task from that of what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
