"""What a process that runs functions for another one must not do.

Such a process imports the script of the other one again, as `__mp_main__`, so what the script does
at its top level happens a second time. A worker started there would be a second worker: it would
take jobs, start processes of its own, and never run the functions for which it was started.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from types import FrameType

told_of_refusals: Callable[[str], None] | None = None
"""Set in the processes of handlers: called with the message of each refusal."""


class StartedTwice(RuntimeError):
    """A process that runs functions did what only the script itself should do."""


def refuse_second_worker() -> None:
    """Refuse to start a worker in a process that only imports functions.

    Raises:
        StartedTwice: This is such a process.
    """
    if told_of_refusals is not None or _is_importing() or _top_level_of_main() is not None:
        _refuse("the worker is started", "worker.run()")


def refuse_second_call() -> None:
    """Refuse calls of a client while a process imports the script that started it.

    Raises:
        StartedTwice: It does.
    """
    if _top_level_of_main() is not None:
        _refuse("a client makes a call", "main()")


def _refuse(what: str, remedy: str) -> None:
    frame = _top_level_of_main()
    script = os.path.basename(frame.f_code.co_filename) if frame is not None else "the module"
    words = (
        f"{what} at the top level of {script}, which each process for handlers, and each child of"
        " multiprocessing, imports again. Put what only the program itself is to do under\n"
        f'\n    if __name__ == "__main__":\n        {remedy}'
    )
    if told_of_refusals is not None:
        told_of_refusals(words)
    raise StartedTwice(words)


def _is_importing() -> bool:
    """Tell whether this is a child of multiprocessing that is still importing."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


def _top_level_of_main() -> FrameType | None:
    """Find the top level of a script that is imported again, among the callers."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            return frame
        frame = frame.f_back
    return None
