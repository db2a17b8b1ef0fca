"""What a process must not do that is there to run functions of another one.

Such a process imports the script of the first one again, as `__mp_main__`. What the script does at
its top level beside definitions is then done a second time: a worker that it runs would be a
second worker, which takes jobs, starts processes of its own and never comes to run what it was
started for.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from types import FrameType

told_of_refusals: Callable[[str], None] | None = None
"""Set in the processes of handlers: takes the words of each refusal."""


class StartedTwice(RuntimeError):
    """A script does in a process for its functions what only the script itself should do."""


def refuse_second_worker() -> None:
    """Let nobody start a worker where a process only imports what it is to run.

    Raises:
        StartedTwice: This is such a process.
    """
    if told_of_refusals is not None or _is_importing() or _top_level_of_main() is not None:
        _refuse("the worker is started", "worker.run()")


def refuse_second_call() -> None:
    """Let no client make calls while a process imports the script that started it.

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
    """Tell of a child of multiprocessing that is not ready yet."""
    return getattr(multiprocessing.current_process(), "_inheriting", False)


def _top_level_of_main() -> FrameType | None:
    """Find the top level of a script that is imported again, among the callers."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            return frame
        frame = frame.f_back
    return None
