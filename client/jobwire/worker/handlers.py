"""Handlers, and the three ways to run one: on the loop, in a thread, in a process."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jobwire.context import Context

Handler = Callable[[Context], Any]
RunMode = Literal["auto", "async", "thread", "process"]


@dataclass(frozen=True, slots=True)
class Operation:
    """A handler under the name of the jobs that it takes."""

    name: str
    function: Handler
    mode: Literal["async", "thread", "process"]

    @classmethod
    def of(cls, name: str, function: Handler, run: RunMode) -> Operation:
        """Pick how to run a function.

        Raises:
            TypeError: The function can't be run that way.
        """
        if _is_generator(function):
            raise TypeError(
                f"the operation {name!r} has a generator for its handler, which would not be run:"
                " a handler returns one result; send pieces with context.output() or"
                " context.progress() instead of yield"
            )
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )
        if run == "auto":
            return cls(name, function, "async" if is_async else "thread")
        if (run == "async") != is_async:
            wanted = "an async function" if run == "async" else "a function that is not async"
            raise TypeError(f"the operation {name!r} has run={run!r}, which needs {wanted}")
        if run == "process" and "<" in getattr(function, "__qualname__", "<object>"):
            raise TypeError(
                f"the operation {name!r} has run='process', which needs a function that another"
                " process can import: define it at the top of a module"
            )
        return cls(name, function, run)


def _is_generator(function: Handler) -> bool:
    called = getattr(function, "__call__", None)  # noqa: B004 - an object with its own
    return any(
        inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in (function, called)
    )


class HandlerExited(RuntimeError):
    """A handler tried to end the whole process."""


class Raised:
    """What a handler raised, in place of a result."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            # It would end the loop, and every other job with it.
            exited = HandlerExited(f"the handler called sys.exit({error.code!r})")
            exited.__cause__ = error
            error = exited
        self.error = error


def call(function: Handler, context: Context) -> Any:
    """Call a sync handler; return its result or `Raised`."""
    try:
        return function(context)
    except BaseException as error:
        return Raised(error)
