"""The call that a task is serving, for whoever writes a log line on its way."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Protocol

REQUEST_ID_KEY = "x-request-id"
_SANE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class _Context(Protocol):
    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


_prefix = secrets.token_hex(4)
_numbers = itertools.count(1)


class Call:
    """One RPC in hand. Its request id is worked out when somebody asks for it."""

    __slots__ = ("_context", "_request_id")

    def __init__(self, context: _Context) -> None:
        self._context: _Context | None = context
        self._request_id = ""

    def end(self) -> None:
        """Lets go of the RPC.

        What the call started may outlive it and write to the log in its name, but metadata that is
        read after the end of an RPC is read from memory that is no longer its own.
        """
        self._context = None

    @property
    def request_id(self) -> str:
        """What the caller sent as `x-request-id` if that is fit for a log, else one of our own."""
        if not self._request_id:
            self._request_id = self._sent() or f"{_prefix}-{next(_numbers):x}"
        return self._request_id

    def _sent(self) -> str:
        if self._context is None:
            return ""
        for key, value in self._context.invocation_metadata() or ():
            if key == REQUEST_ID_KEY and isinstance(value, str) and _SANE.fullmatch(value):
                return value
        return ""


_current: ContextVar[Call | None] = ContextVar("jobwire_call", default=None)


def enter_call(context: _Context) -> Call:
    """Note that this task serves the call; the note ends with the task."""
    call = Call(context)
    _current.set(call)
    return call


def current_call() -> Call | None:
    """The call that this task serves, if it serves one."""
    return _current.get()
