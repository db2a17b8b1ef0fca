"""The worker as its users see it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, TypeVar

import grpc
from grpc import aio

from jobwire._children import refuse_second_worker
from jobwire._connection import ConnectionOptions, Tls, __version__
from jobwire._convert import to_duration
from jobwire._retry import Backoff
from jobwire.errors import CallError
from jobwire.transport import START_PATIENCE_S, StreamTransport, Transport, UnaryTransport
from jobwire.v1.worker_service_pb2 import WorkerSpec
from jobwire.worker.handlers import Handler, Operation, RunMode
from jobwire.worker.held import WorkerStats
from jobwire.worker.life import Life
from jobwire.worker.processes import ProcessOptions, ProcessPool

log = logging.getLogger("jobwire.worker")

F = TypeVar("F", bound=Handler)

# The thresholds of the collector in the Pythons that are supported, up to 3.12 and from 3.13 on.
_PYTHONS_OWN = {(700, 10, 10), (2_000, 10, 10), (2_000, 10, 0), (2_000, 10, 5)}


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
        shutdown_grace_s: How long jobs may go on once it has been told to stop, in seconds.
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

    Raises:
        ValueError: `concurrency`, `prefetch`, `credit_bytes`, `queues` or `transport` is out of
            its range.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        queues: Sequence[str] = ("default",),
        labels: Mapping[str, str] | None = None,
        concurrency: int = 10,
        worker_id: str | None = None,
        lease_s: float | None = None,
        shutdown_grace_s: float = 30.0,
        transport: Literal["stream", "unary"] = "stream",
        prefetch: int | None = None,
        credit_bytes: int = 0,
        processes: ProcessOptions | None = None,
        channel: aio.Channel | None = None,
        tls: bool | Tls = False,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Mapping[str, str] | None = None,
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
        if credit_bytes < 0:
            raise ValueError(f"credit_bytes is {credit_bytes}; it must be 0 or more")
        self.queues = tuple(queues)
        self.labels = dict(labels or {})
        self.concurrency = concurrency
        self.id = worker_id or _new_worker_id()
        self.lease_s = lease_s
        self.shutdown_grace_s = shutdown_grace_s
        self.transport: Literal["stream", "unary"] = transport
        self.prefetch = prefetch
        self.credit_bytes = credit_bytes
        self.processes = processes or ProcessOptions()
        self._options = ConnectionOptions(
            target=target, tls=tls, credentials=credentials, metadata=dict(metadata or {})
        )
        self._channel = channel
        self._operations: dict[str, Operation] = {}
        self._life: Life | None = None
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

    def run(self) -> None:
        """Works until SIGTERM or SIGINT; blocks.

        It takes the process over: beside the signals, it has Python's garbage collector look less
        often, unless `gc.set_threshold` was called before.

        Raises:
            CallError: The broker refused the worker.
            RuntimeError: It has no handlers.
        """
        _calm_the_collector()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self.serve())

    async def serve(self) -> None:
        """Works until SIGTERM or SIGINT, the broker's wish, or the task's cancellation.

        A second signal ends the grace of running jobs.

        Raises:
            CallError: The broker refused the worker.
            RuntimeError: It has no handlers.
        """
        wanted, hurry = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            if wanted.is_set():
                log.warning("told to stop again: running jobs are given back now")
                hurry.set()
            else:
                log.info("told to stop: finishing running jobs")
                wanted.set()

        signals = _Signals(on_signal)
        starting = asyncio.create_task(self.start())
        stopping = asyncio.create_task(wanted.wait())
        try:
            with signals:
                tasks: set[asyncio.Task[Any]] = {starting, stopping}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    return
                await starting
                assert self._life is not None
                await self._life.wait_for_end(stopping)
                await self.stop(hurry=hurry)
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await self.stop()

    async def start(self) -> None:
        """Registers the worker and begins to take jobs. Starting a started worker does nothing.

        It waits as long as no server answers. Before, it starts a process for handlers if it has
        such, and has it import them.

        Raises:
            CallError: The broker refused the worker.
            RuntimeError: It has no handlers; or a process for handlers does not start; or this
                process is such a one, or a child of multiprocessing, and imports the script that
                runs the worker: put `worker.run()` under `if __name__ == "__main__":`.
        """
        if self._life is not None:
            return
        refuse_second_worker()
        if not self._operations:
            raise RuntimeError("the worker has no handlers: decorate one with @worker.operation")
        self._last_stats = WorkerStats()
        processes = ProcessPool(self.processes)
        try:
            await processes.prepare(
                operation.function
                for operation in self._operations.values()
                if operation.mode == "process"
            )
            self._life = await self._open(processes)
        except BaseException:
            await processes.close()
            raise
        log.info(
            "worker %s serves %s of %s with %d slots, broker %s",
            self.id,
            ", ".join(self._operations),
            ", ".join(self.queues),
            self.concurrency,
            self._options.address,
        )

    async def stop(self, *, hurry: asyncio.Event | None = None) -> None:
        """Takes no more jobs, lets those that run finish, gives back the rest, and leaves.

        Stopping a worker that does not run does nothing.

        Args:
            hurry: Ends the grace of running jobs when set.
        """
        life = self._life
        if life is not None and not life.closing:
            try:
                await life.close(self.shutdown_grace_s, hurry or asyncio.Event())
            finally:
                self._last_stats, self._life = life.stats, None
            log.info("worker %s has left", self.id)

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
        # A channel of the caller's says nothing of where it leads.
        options = self._options if self._channel is None else None
        return await Life.open(
            self._spec(), self._operations, transport, processes, prefetch, options
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


class _Signals:
    """Calls a function on SIGTERM and SIGINT, where signals can be had."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._set: list[signal.Signals] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._call)
            self._set.append(number)

    def __exit__(self, *error: object) -> None:
        for number in self._set:
            asyncio.get_running_loop().remove_signal_handler(number)


def _calm_the_collector() -> None:
    """Has the collector look after 20,000 new objects rather than 700.

    The jobs in hand are thousands of objects without cycles, and at Python's own thresholds
    looking through them again and again takes a third of a busy worker's time.
    """
    if gc.get_threshold() in _PYTHONS_OWN:
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Picks uvloop where it is installed, the faster loop under gRPC."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _new_worker_id() -> str:
    host = re.sub(r"[^A-Za-z0-9._:@-]", "-", socket.gethostname())
    return f"{host[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
