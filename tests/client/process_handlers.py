"""Handlers that start processes, or do to their own what breaks it."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from jobwire import Context, Fatal

SLEEP = "exec sleep 600"
STUBBORN = "trap '' TERM; while :; do sleep 1; done"


def square(number: int) -> int:
    return number * number


def use_pool(context: Context) -> list[int]:
    with multiprocessing.get_context(context.payload).Pool(2) as pool:
        squares: list[int] = pool.map(square, range(4))
    return squares


def use_executor(context: Context) -> list[int]:
    with ProcessPoolExecutor(2, multiprocessing.get_context(context.payload)) as executor:
        return list(executor.map(square, range(4)))


def own_pid(context: Context) -> int:
    return os.getpid()


def state_of_programs(context: Context) -> dict[str, Any]:
    """What a program that a handler starts finds."""
    status = subprocess.check_output(["cat", "/proc/self/status"], text=True)
    descriptors = subprocess.check_output(["ls", "/proc/self/fd"], text=True)
    stdin = subprocess.check_output(["readlink", "/proc/self/fd/0"], text=True)
    ends = [
        subprocess.run(["sh", "-c", f"kill -{name} $$; echo goes on"], check=False).returncode
        for name in ("TERM", "INT", "HUP")
    ]
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "ignored": int(fields["SigIgn"], 16),
        "blocked": int(fields["SigBlk"], 16),
        "descriptors": descriptors.split(),
        "stdin": stdin.strip(),
        "ends": ends,
    }


def start_and_wait(context: Context) -> None:
    """Start programs, name them, and ignore the signal to stop."""
    scripts = context.payload
    programs = [subprocess.Popen(["sh", "-c", script]) for script in scripts]
    # A child of a child, whose parent has ended.
    orphan = subprocess.check_output(["sh", "-c", "sleep 600 >/dev/null & echo $!"])
    pids = [os.getpid(), int(orphan), *(program.pid for program in programs)]
    context.progress(None, "started", pids)
    for program in programs:
        program.wait()
    time.sleep(600)


def leave_running(context: Context) -> list[int]:
    orphan = subprocess.check_output(["sh", "-c", "sleep 600 >/dev/null & echo $!"])
    program = subprocess.Popen(["sh", "-c", context.payload])
    return [os.getpid(), int(orphan), program.pid]


def leave_tracker(context: Context) -> int:
    """Have multiprocessing start a process of its own, which stays."""
    from multiprocessing import shared_memory

    memory = shared_memory.SharedMemory(create=True, size=16)
    memory.close()
    memory.unlink()
    return os.getpid()


def _abort() -> None:
    # In this very thread: `faulthandler` reads the frames of all, and crashes where one goes on.
    signal.pthread_kill(threading.get_ident(), signal.SIGABRT)


def end_badly(context: Context) -> None:
    match context.payload:
        case "exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "close":
            os.closerange(3, 1024)
            time.sleep(600)
        case "thread":
            # The main thread waits for it; a signal ends the process meanwhile.
            threading.Thread(target=_abort).start()
            time.sleep(600)


class Unpicklable(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__("two numbers")
        self.lock = threading.Lock()


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


def recurse(depth: int) -> int:
    return recurse(depth + 1) + 1


def raise_oddly(context: Context) -> None:
    match context.payload:
        case "deliberate":
            raise Fatal("no use")
        case "unpicklable":
            raise Unpicklable(1, 2)
        case "unspeakable":
            raise Unspeakable
        case "interrupt":
            raise KeyboardInterrupt
        case "exit":
            sys.exit(5)
        case "recursion":
            recurse(0)


def fork_and_return(context: Context) -> str:
    """Both the handler and a child that it forks return."""
    child = os.fork()
    if child == 0:
        return "child"
    os.waitpid(child, 0)
    return "parent"


def print_much(context: Context) -> int:
    for _ in range(4):
        print("x" * (1 << 20))
    return 4 << 20


def answer_largely(context: Context) -> str:
    return "x" * int(context.payload)


HOARD: list[bytes] = []


def hoard(context: Context) -> int:
    HOARD.append(b"x" * (64 << 20))
    return os.getpid()


def log_lines(context: Context) -> None:
    logging.getLogger("tests.handlers").info("seen %s", "by the worker", extra={"odd": lambda: 1})
    logging.getLogger("tests.handlers").debug("not seen")
    try:
        raise ValueError("the cause")
    except ValueError:
        logging.getLogger("tests.handlers").exception("went wrong")
    context.logger.info("said by the job's logger")


def leave_from_thread(context: Context) -> int:
    """In a thread of the worker."""
    return subprocess.Popen(["sleep", "600"]).pid


def touch_and_wait(context: Context) -> str:
    Path(context.payload).touch()
    return "heeded" if context.wait_cancelled(600) else "waited"


def fork_a_pool(context: Context) -> None:
    """In a thread of the worker: forked children, which live as long as they like."""
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    context.progress(None, "started", [child])
    time.sleep(600)
