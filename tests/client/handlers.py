"""Handlers that another process can import."""

from __future__ import annotations

import os
import signal

from jobwire import CallError, Context, Fatal


def double(context: Context) -> dict[str, int]:
    context.progress(0.25, "early")
    context.progress(0.75, "late")
    return {"twice": context.payload * 2, "pid": os.getpid(), "token": context.fencing_token}


def refuse(context: Context) -> None:
    raise Fatal(f"no {context.payload}", type="Unwanted")


def wait_for_the_signal(context: Context) -> None:
    context.progress(None, "waiting")
    context.wait_cancelled(60)
    context.raise_if_cancelled()


def die(context: Context) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def speak(context: Context) -> str:
    with context.capture_stdout():
        for number in range(context.payload):
            print(number)
    context.output(bytes(100_000), "raw")
    context.logger.info("speaking")
    return "spoken"


def save(context: Context) -> list[object]:
    context.save_checkpoint(context.checkpoint + 1)
    try:
        context.save_checkpoint("more")
    except CallError as error:
        told = [type(error).__name__, error.message, error.reason]
        return [*told, context.deadline is not None]
    return ["saved"]


def wait_for_the_end(context: Context) -> None:
    context.wait_cancelled(60)
    context.raise_if_cancelled()
