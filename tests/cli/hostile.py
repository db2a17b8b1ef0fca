"""A worker of somebody who would like to steer the terminals of others."""

from __future__ import annotations

import logging

from jobwire import Context, Fatal, Worker

TEXT = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202eabc [red]x[/] [/] [link=http://x]y :bomb: \r\bz"
"""A title, a cleared screen, C1, DEL, a direction, markup of tables, an emoji's name."""
LABEL = "\x1b]0;own\x07\x9b2J\u202e[/]"

worker = Worker(labels={"sly": LABEL})


@worker.operation("attack")
def attack(context: Context) -> object:
    context.progress(0.5, TEXT)
    context.output(TEXT + "\n")
    context.output(TEXT + "\n", "stderr")
    context.save_checkpoint({TEXT: TEXT})
    if context.payload == "fail":
        raise Fatal(TEXT, type="Sly" + LABEL)
    if context.payload == "bytes":
        return TEXT.encode()
    return {TEXT: [TEXT]}


@worker.operation("stay")
def stay(context: Context) -> None:
    context.progress(0.5, TEXT)
    context.wait_cancelled(60)
    context.raise_if_cancelled()


@worker.operation("log")
def log(context: Context) -> None:
    logging.getLogger("sly" + LABEL).warning("logged %s", TEXT, stack_info=True)
    context.logger.info("said %s", TEXT)
    raise ValueError(TEXT)
