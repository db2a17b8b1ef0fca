"""What happens around every call: request id, errors to statuses, counts, the access log.

It is on the way of each of many thousand calls a second, so each method is wrapped once,
and nothing is built for a call that nobody will look at.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from time import perf_counter
from typing import Any, TypeAlias

import grpc
import structlog
from grpc import StatusCode
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.errors import ServerDraining
from jobwire_server.servicers.letting_go import let_go
from jobwire_server.servicers.reading import Unreadable, marking, raising
from jobwire_server.servicers.status import DETAILS_KEY, as_domain_error, details_of
from jobwire_server.telemetry.current_call import Call, enter_call
from jobwire_server.telemetry.metrics import IN_FLIGHT, MethodStats, RpcMetrics

SLOW_S = 1.0
"""A unary call that takes longer is written to the log, unless it asked for a wait."""
LINES_PER_S = 50
"""Failures written in one second; a store that is down fails thousands."""
LONGEST_ID = 90
"""Characters of a job's id; of what a caller calls one no more is written."""
WHILE_DRAINING = ("grpc.health.", "grpc.reflection.", "grpc.channelz.")
"""Services that answer until the end."""

_WARNED = frozenset({StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED})

log: FilteringBoundLogger = structlog.get_logger("jobwire.rpc")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of the server.

    Args:
        metrics: Where calls are counted.
        log_all: Write a line for every call; False: for those that fail or are slow.
    """

    def __init__(self, metrics: RpcMetrics, *, log_all: bool = False) -> None:
        self._metrics = metrics
        self._log_all = log_all
        self._wrapped: dict[str, Handler] = {}
        self._awaited: list[MethodStats] = []
        self._draining = False
        self._second, self._lines, self._left_out = 0, 0, 0

    def drain(self) -> None:
        """From now on refuse new calls, except those about the server itself."""
        self._draining = True

    @property
    def in_hand(self) -> int:
        """The calls that draining waits for: all but those about the server itself."""
        return sum(stats.in_flight for stats in self._awaited)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method: str = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:  # an unknown method, of which there are endlessly many
                return None
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        kind = ("unary" if not handler.request_streaming else "stream") + (
            "_unary" if not handler.response_streaming else "_stream"
        )
        behavior = getattr(handler, kind)
        stats = self._metrics.method(method)
        always = method.lstrip("/").startswith(WHILE_DRAINING)
        if not always:
            self._awaited.append(stats)
        reads = raising if handler.request_streaming else marking
        if inspect.isasyncgenfunction(behavior):
            behavior = _closing_all(behavior) if handler.request_streaming else behavior
            wrapped: Any = self._generator(behavior, stats, always)
        elif inspect.iscoroutinefunction(behavior):
            behavior = _closing(behavior) if handler.request_streaming else behavior
            timed = kind == "unary_unary"
            wrapped = self._coroutine(behavior, stats, always, timed)
        else:  # runs in a thread, where no coroutine can stand around it
            return handler
        make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        # What can't be read is refused here, or told to whoever reads the stream: gRPC itself
        # would make it a defect of the server.
        result: Handler = make(
            wrapped, reads(handler.request_deserializer), handler.response_serializer
        )
        return result

    def _coroutine(self, behavior: Any, stats: MethodStats, always: bool, timed: bool) -> Any:
        log_all, cells = self._log_all, stats.cells

        async def call(request: Any, context: Any) -> Any:
            started = perf_counter()
            entered = enter_call(context)
            cells[IN_FLIGHT] += 1
            try:
                if self._draining and not always:
                    raise ServerDraining()
                if type(request) is Unreadable:
                    raise request.error
                response = await behavior(request, context)
            except BaseException as error:
                if not await self._failed(error, request, context, entered, stats, started):
                    raise
                # gRPC goes on with what it was told to abort with, and wants no answer.
            else:
                stats.count("OK")
                took = perf_counter() - started
                if timed:
                    stats.observe(took)
                    if took > SLOW_S and not log_all and not _asked_to_wait(request):
                        self._write(stats.method, StatusCode.OK, request, started, slow=True)
                if log_all:
                    self._write(stats.method, StatusCode.OK, request, started)
                return response
            finally:
                entered.end()
                cells[IN_FLIGHT] -= 1

        return call

    def _generator(self, behavior: Any, stats: MethodStats, always: bool) -> Any:
        cells = stats.cells

        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            started = perf_counter()
            entered = enter_call(context)
            cells[IN_FLIGHT] += 1
            try:
                if self._draining and not always:
                    raise ServerDraining()
                if type(request) is Unreadable:
                    raise request.error
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        yield response
            except BaseException as error:
                if not await self._failed(error, request, context, entered, stats, started):
                    raise
                # gRPC goes on with what it was told to abort with, and wants no answer.
            else:
                stats.count("OK")
                if self._log_all:
                    self._write(stats.method, StatusCode.OK, request, started)
            finally:
                entered.end()
                cells[IN_FLIGHT] -= 1

        return call

    async def _failed(
        self,
        error: BaseException,
        request: Any,
        context: Any,
        call: Call,
        stats: MethodStats,
        started: float,
    ) -> bool:
        """Count and log a failure; return whether the call has its status, else it is to be raised.

        An error holds the frames that it came through, by its traceback, and they hold the
        request, a megabyte perhaps. What holds the error in turn closes a circle that waits for the
        collector, as gRPC's context does with what a call is aborted with. So that goes through no
        frame of the handler, and errors let go of theirs here.
        """
        try:
            if isinstance(error, asyncio.CancelledError | GeneratorExit):
                # The client went away or its deadline passed; swallowing it would leak the call.
                remaining = context.time_remaining()
                late = remaining is not None and remaining <= 0
                code = StatusCode.DEADLINE_EXCEEDED if late else StatusCode.CANCELLED
                stats.count(code.name)
                if self._log_all:
                    self._write(stats.method, code, request, started)
                return False
            if isinstance(error, grpc.aio.AbortError) or _is_unimplemented(error, context):
                code = context.code()
                stats.count(code.name)
                self._write(stats.method, code, request, started)
                if not isinstance(error, grpc.aio.AbortError):
                    await _abort(context, code, context.details())
                return True
            if not isinstance(error, Exception):
                return False
            refusal, details = details_of(error, call.request_id)
            stats.count(refusal.code.name)
            defect = error if as_domain_error(error) is None else None
            self._write(
                stats.method, refusal.code, request, started, reason=refusal.reason, defect=defect
            )
            await _abort(context, refusal.code, refusal.message, ((DETAILS_KEY, details),))
            return True
        finally:
            let_go(error)

    def _write(
        self,
        method: str,
        code: StatusCode,
        request: Any,
        started: float,
        *,
        reason: str = "",
        slow: bool = False,
        defect: Exception | None = None,
    ) -> None:
        now = perf_counter()
        if not self._log_all and defect is None:
            if int(now) != self._second:
                self._second, self._lines = int(now), 0
            self._lines += 1
            if self._lines > LINES_PER_S:
                self._left_out += 1
                return
        fields: dict[str, Any] = {"method": method, "code": code.name}
        job_id = _job_id(request)
        if job_id:
            fields["job_id"] = job_id
        if reason:
            fields["reason"] = reason
        fields["duration_ms"] = round((now - started) * 1_000, 2)
        if self._left_out:
            fields["lines_left_out"], self._left_out = self._left_out, 0
        if defect is not None:
            log.error("call failed by a defect", exc_info=defect, **fields)
        elif code in _WARNED or slow:
            log.warning("slow call" if slow else "call", **fields)
        else:
            log.info("call", **fields)


def _closing(behavior: Any) -> Any:
    """Have a stream's requests go with its end: gRPC's reader holds the last one, and itself."""

    async def handle(requests: Any, context: Any) -> Any:
        async with aclosing(aiter(requests)) as stream:
            return await behavior(stream, context)

    return handle


def _closing_all(behavior: Any) -> Any:
    """Do so for a method that streams answers, too."""

    async def handle(requests: Any, context: Any) -> AsyncIterator[Any]:
        async with (
            aclosing(aiter(requests)) as stream,
            aclosing(behavior(stream, context)) as responses,
        ):
            async for response in responses:
                yield response

    return handle


async def _abort(context: Any, code: StatusCode, message: str, trailers: Any = ()) -> None:
    """Send a call's status."""
    try:
        await context.abort(code, message, trailers)
    except grpc.aio.AbortError as aborted:
        let_go(aborted)


def _is_unimplemented(error: BaseException, context: Any) -> bool:
    """A generated servicer says so for a method that nobody has written."""
    return isinstance(error, NotImplementedError) and context.code() is StatusCode.UNIMPLEMENTED


def _job_id(request: Any) -> str:
    job_id = getattr(request, "job_id", "") or getattr(
        getattr(request, "completion", None), "job_id", ""
    )
    return job_id[:LONGEST_ID] if isinstance(job_id, str) else ""


def _asked_to_wait(request: Any) -> bool:
    """A long poll is slow by intention."""
    return hasattr(request, "wait") or hasattr(request, "claim_next")
