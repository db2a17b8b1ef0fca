"""Runs a module and notes when jobs pass its seams: `python -m benchmarks.traced FILE MODULE
[ARGUMENTS...]`.

FILE has a line of JSON for each moment once the program has ended by itself or by a signal that it
heeds: the nanoseconds of the clock that all processes of a machine share, and what happened. The
program itself knows nothing of it: functions at the seams are replaced before it starts.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import _common

Moments = list[tuple[int, str]]

SERVER = {
    "jobwire_server.store.group_commit:GroupCommit.submit": ("commit", "committed"),
    "jobwire_server.store.runner:ScriptRunner.run": ("run {1}", "ran {1}"),
    "jobwire_server.store.notices:Notices._dispatch": ("notice", ""),
    "jobwire_server.store.connection.pipe:_Wire.send": ("sent", ""),
    "jobwire_server.store.connection.pipe:_Wire.data_received": ("arrived", ""),
    "jobwire_server.servicers.frames:FrameWriter.to_wire": ("frame", ""),
}
SDK = {
    "jobwire._async.client:AsyncClient.submit": ("submit", "submitted"),
    "jobwire._async.client:AsyncClient.call": ("call", "called"),
    "jobwire._async.handle:AsyncJobHandle.result": ("await", "result"),
}
"""Functions by module and name: what happens when one begins, and when it ends; `{1}` is its first
argument after `self`."""
MAY_BE_MISSING = frozenset(
    {
        "jobwire._async.client:AsyncClient.call",
        "jobwire_server.store.connection.pipe:_Wire.send",
        "jobwire_server.store.connection.pipe:_Wire.data_received",
    }
)
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Trace:
    """Moments, and the functions that note them."""

    def __init__(self) -> None:
        self.moments: Moments = []

    def replace_seams(self, seams: dict[str, tuple[str, str]]) -> None:
        """Replaces functions by ones that note when they begin and end.

        Raises:
            AttributeError: There is no such function any more.
        """
        for seam, (begins, ends) in seams.items():
            module, _, path = seam.partition(":")
            owner_name, _, name = path.partition(".")
            try:
                owner = getattr(importlib.import_module(module), owner_name)
                function = getattr(owner, name)
            except (ImportError, AttributeError) as error:
                if seam in MAY_BE_MISSING:
                    continue
                text = f"{seam} is gone: say in benchmarks/traced.py what follows it"
                raise AttributeError(text) from error
            setattr(owner, name, self._around(function, begins, ends))

    def _around(self, function: Callable[..., Any], begins: str, ends: str) -> Callable[..., Any]:
        moments = self.moments

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def traced(*args: Any, **named: Any) -> Any:
                at = monotonic_ns()
                result = await function(*args, **named)
                after = monotonic_ns()
                moments.append((at, begins.format(*args[:2], "")))
                moments.append((after, ends.format(*args[:2], "")))
                return result

            return traced

        @functools.wraps(function)
        def traced_at_once(*args: Any, **named: Any) -> Any:
            moments.append((monotonic_ns(), begins.format(*args[:2], "")))
            return function(*args, **named)

        return traced_at_once

    def replace_client_codec(self) -> None:
        """Notes what gRPC's clients send and receive."""
        serialize, deserialize = _common.serialize, _common.deserialize
        _common.serialize = self._going_out(serialize)
        _common.deserialize = self._coming_in(deserialize)

    def replace_server_codec(self) -> None:
        """Notes what gRPC's servers receive and send."""
        for kind in KINDS:
            name = f"{kind}_rpc_method_handler"
            setattr(grpc, name, self._handler_maker(getattr(grpc, name)))

    def _handler_maker(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(behavior: Any, request_deserializer: Any = None, response_serializer: Any = None):  # type: ignore[no-untyped-def]
            return make(
                behavior,
                request_deserializer and self._coming_in(request_deserializer),
                response_serializer and self._going_out(response_serializer),
            )

        return made

    def _going_out(self, serialize: Callable[..., Any]) -> Callable[..., Any]:
        if getattr(serialize, "is_traced", False):
            return serialize

        def going_out(message: Any, *more: Any) -> Any:
            self.moments.append((monotonic_ns(), f"out {_shown(message)}"))
            return serialize(message, *more)

        going_out.is_traced = True  # type: ignore[attr-defined]
        return going_out

    def _coming_in(self, deserialize: Callable[..., Any]) -> Callable[..., Any]:
        def coming_in(data: Any, *more: Any) -> Any:
            at = monotonic_ns()
            message = deserialize(data, *more)
            self.moments.append((at, f"in {_shown(message)}"))
            return message

        return coming_in

    def replace_handlers(self) -> None:
        """Notes when handlers of the SDK's worker begin and end."""
        from jobwire import Worker

        register_with = Worker.operation

        def operation(worker: Any, name: str, **named: Any) -> Any:
            register = register_with(worker, name, **named)
            return lambda function: register(self._around(function, "handler", "handled"))

        setattr(Worker, "operation", operation)  # noqa: B010

    def write(self, file: Path) -> None:
        """Writes all moments in their order."""
        self.moments.sort()
        with file.open("w") as out:
            out.writelines(json.dumps(moment) + "\n" for moment in self.moments)


def _shown(message: Any) -> str:
    """Returns the type of a message and the fields that it has."""
    if not isinstance(message, Message):
        return type(message).__name__
    fields = ",".join(field.name for field, _ in message.ListFields())
    return f"{message.DESCRIPTOR.name}:{fields}"


def main() -> None:
    """Runs the module that the command line names as if it had been started itself."""
    _, file, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    trace = Trace()
    if module == "benchmarks.singly":
        trace.replace_seams(SDK)
        trace.replace_client_codec()
    elif module == "benchmarks.working":
        trace.replace_client_codec()
        trace.replace_handlers()
    else:
        trace.replace_server_codec()
        trace.replace_seams(SERVER)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        trace.write(Path(file))


if __name__ == "__main__":
    main()
