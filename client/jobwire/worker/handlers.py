"""Handlers, and the three ways to run one: on the loop, in a thread, in a process."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
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
        """Picks how to run a function.

        Raises:
            TypeError: The function can't be run that way.
        """
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )
        if run == "auto":
            return cls(name, function, "async" if is_async else "thread")
        if (run == "async") != is_async:
            wanted = "an async function" if run == "async" else "a function that is not async"
            raise TypeError(f"the operation {name!r} is run as {run!r}, which takes {wanted}")
        if run == "process" and "<" in getattr(function, "__qualname__", "<object>"):
            raise TypeError(
                f"the operation {name!r} is run as 'process', which takes a function that another"
                " process can import: define it at the top of a module"
            )
        return cls(name, function, run)


class HandlerExited(RuntimeError):
    """A handler tried to end the whole process."""


async def run_on_loop(function: Handler, context: Context) -> Any:
    """Awaits an async handler."""
    try:
        return await function(context)
    except SystemExit as error:
        # asyncio would end the loop, and every other job with it.
        raise HandlerExited(f"the handler called sys.exit({error.code!r})") from error


async def run_in_thread(function: Handler, context: Context) -> Any:
    """Calls a sync handler in a thread of its own.

    The thread is a daemon and no executor's: one that does not stop must not keep the process
    from ending.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    variables = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def call() -> None:
        result: Any = None
        raised: BaseException | None = None
        try:
            result = variables.run(function, context)
        except (SystemExit, StopIteration) as error:
            # Neither can be carried by a future.
            raised = HandlerExited(f"the handler raised {error!r}")
            raised.__cause__ = error
        except BaseException as error:
            raised = error
        try:
            loop.call_soon_threadsafe(settle, result, raised)
        except RuntimeError:
            # The loop is closed: the worker has given the job back and is gone.
            return

    threading.Thread(target=call, name=f"jobwire-{context.job_id}", daemon=True).start()
    return await done
