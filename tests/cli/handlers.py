"""The worker that the tests of the command run."""

from __future__ import annotations

from typing import Any

from jobwire import Context, Fatal, Worker

worker = Worker()


@worker.operation("echo")
def echo(context: Context) -> Any:
    context.progress(0.5, "half way")
    return context.payload


@worker.operation("fail")
def fail(context: Context) -> None:
    raise Fatal("no use", type="Hopeless")


@worker.operation("wait")
def wait(context: Context) -> None:
    context.progress(None, "waiting")
    context.wait_cancelled(60)
    context.raise_if_cancelled()


@worker.operation("talk")
def talk(context: Context) -> str:
    context.output("out\n")
    context.output("err\n", "stderr")
    if context.payload == "wait":
        context.wait_cancelled(60)
        context.raise_if_cancelled()
    return "said"


@worker.operation("save")
def save(context: Context) -> None:
    context.save_checkpoint({"half": context.payload})
    raise RuntimeError("not to the end")
