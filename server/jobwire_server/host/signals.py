"""What signals ask of a server: to end, to end at once, to read its settings again."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from types import TracebackType
from typing import Self

ENDING = (signal.SIGTERM, signal.SIGINT)


def end_without_a_word() -> None:
    """Have SIGINT end the process as SIGTERM does, for as long as there is nothing to be tidied up.

    Python's own answer to it is an exception, wherever the program stands just then.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class Signals:
    """Listens to signals from the first step of a start to the last of the end.

    SIGTERM and SIGINT ask to stop, a second one to hurry. SIGHUP asks to read the settings again,
    unless it comes because the terminal was closed at which the server was started: then it asks to
    stop. One that was told to ignore it (nohup) never stops for it.

    Use it as a context, inside of the event loop.
    """

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.hurry = asyncio.Event()
        self._again = asyncio.Event()
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self._terminals = [] if ignored else _terminals()

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in (*ENDING, signal.SIGHUP):
            with suppress(ValueError):
                loop.remove_signal_handler(number)
            # All is stopped, and the process as good as ended: it is not to fail at the last step.
            signal.signal(number, signal.SIG_IGN)

    def stop(self) -> None:
        """As if a signal had asked for it."""
        (self.hurry if self.stopping.is_set() else self.stopping).set()

    async def next(self) -> bool:
        """Wait for what is asked; True: to read the settings again, False: to stop."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self.stopping, self._again)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        if self.stopping.is_set():
            return False
        self._again.clear()
        return True

    def _hang_up(self) -> None:
        if self._terminals and not any(map(os.isatty, self._terminals)):
            self._terminals = []  # it is closed once: a later one asks for the settings
            self.stop()
        else:
            self._again.set()


def _terminals() -> list[int]:
    return [number for number in range(3) if os.isatty(number)]
