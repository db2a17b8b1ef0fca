"""What the process of a handler must know before it can import its handlers."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import os
import pickle
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import process

from jobwire.worker.handlers import Handler
from jobwire.worker.processes.logs import LogLevels


class ProcessStartFailed(RuntimeError):
    """A process for handlers does not start, or can't import them."""


@dataclass(frozen=True, slots=True)
class MainModule:
    """The module that the worker's program was started with.

    One of the two is set: its name, with `python -m`, or the script's path.
    """

    name: str = ""
    path: str = ""

    @classmethod
    def of_this_process(cls) -> MainModule | None:
        """Return the main module of this process; None: the program was typed in."""
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        # Of a directory or a zip archive the name is only `__main__`.
        if spec is not None and spec.name != "__main__":
            return cls(name=spec.name)
        path = getattr(main, "__file__", None)
        if path is None:
            return None
        return cls(path=os.path.normpath(os.path.join(_original_directory(), path)))

    def import_again(self) -> None:
        """Run it as `__mp_main__`, which also replaces `__main__`.

        Source: multiprocessing.spawn; there the functions see another copy of the module's
        variables than its importers.
        """
        module = types.ModuleType("__mp_main__")
        if self.name:
            spec = importlib.util.find_spec(self.name)
            if spec is None or spec.loader is None:
                raise ImportError(f"there is no module {self.name!r}")
            code = spec.loader.get_code(self.name)  # type: ignore[attr-defined]
            module.__spec__ = spec
            module.__package__ = spec.parent
            module.__file__ = spec.origin
        else:
            with io.open_code(self.path) as file:
                code = compile(file.read(), self.path, "exec")
            module.__file__ = self.path
        sys.modules["__main__"] = sys.modules["__mp_main__"] = module
        exec(code, vars(module))


@dataclass(frozen=True, slots=True)
class Setup:
    """The first thing that a process is sent."""

    functions: tuple[bytes, ...]
    """Handlers, pickled: by module and name."""
    main: MainModule | None
    arguments: list[str]
    start_method: str | None
    """The start method of multiprocessing, if it was set."""
    log_levels: LogLevels
    worker: int
    """The worker's process id."""
    end_children: bool

    @classmethod
    def of_this_process(cls, functions: Iterable[Handler], *, end_children: bool) -> Setup:
        """Describe this process, the worker's.

        Raises:
            ProcessStartFailed: Another process can't import one of the functions.
        """
        pickles = tuple(pickled(function) for function in functions)
        needs_main = any(b"__main__" in one for one in pickles)
        main = MainModule.of_this_process() if needs_main else None
        if needs_main and main is None:
            raise ProcessStartFailed(
                "handlers that run in processes are imported there, but this program was typed in:"
                " put them into a module"
            )
        return cls(
            functions=pickles,
            main=main,
            arguments=list(sys.argv),
            start_method=multiprocessing.get_start_method(allow_none=True),
            log_levels=LogLevels.of_this_process(),
            worker=os.getpid(),
            end_children=end_children,
        )


def search_path() -> list[str]:
    """Return this process's search path for modules, as absolute paths."""
    return [os.path.join(_original_directory(), entry) for entry in sys.path]


def pickled(function: Handler) -> bytes:
    """Name a function by module and name, as pickles do.

    Raises:
        ProcessStartFailed: It can't be found there.
    """
    try:
        return pickle.dumps(function)
    except Exception as error:
        raise ProcessStartFailed(
            f"the handler {function!r} can't run in a process, which has to import it: {error}"
        ) from error


def _original_directory() -> str:
    return getattr(process, "ORIGINAL_DIR", None) or ""
