"""The command that runs a worker."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

import click
from rich.console import Console
from rich.logging import RichHandler

from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.parameters import duration, key_value, size
from jobwire.worker import Worker
from jobwire.worker.host import FORK_VARIABLE, forks_are_safe
from jobwire.worker.logs import LogFormat, TextFormatter, set_up_logging


@cli.command()
@click.argument("worker", metavar="MODULE[:NAME]")
@click.option(
    "--queue", "-q", multiple=True, help="Serve this queue instead of the worker's own. Repeatable."
)
@click.option(
    "--concurrency",
    "-c",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="How many jobs it runs at once.",
)
@click.option(
    "--label",
    "-l",
    type=key_value,
    metavar="KEY=VALUE",
    multiple=True,
    help="A label to add to the worker's own. Repeatable.",
)
@click.option("--id", "worker_id", help="Its id. Default: host name, process id and a random part.")
@click.option(
    "--grace", type=duration, help="How long jobs may keep running after it was told to stop."
)
@click.option(
    "--transport",
    type=click.Choice(["stream", "unary"]),
    help="How it talks to the broker, instead of the worker's own way.",
)
@click.option(
    "--process-max-jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Replace a process of handlers after this many jobs.",
)
@click.option(
    "--process-max-memory",
    type=size,
    help="Replace a process of handlers that holds more memory after a job.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least severe messages to log.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines for people, or one JSON object per line.",
)
@common
@pass_settings
def worker(
    settings: Settings,
    worker: str,
    queue: tuple[str, ...],
    concurrency: int | None,
    label: tuple[tuple[str, str], ...],
    worker_id: str | None,
    grace: float | None,
    transport: Literal["stream", "unary"] | None,
    process_max_jobs: int | None,
    process_max_memory: int | None,
    log_level: str,
    log_format: LogFormat,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C.

    MODULE[:NAME] names a jobwire.Worker in an importable module. The current directory is searched
    first; NAME is `worker` unless given. The first signal lets running jobs finish, a second one
    gives them back at once.
    """
    _without_grpc_in_forks()
    found = load_worker(worker)
    found.connect_to(settings.target, tls=settings.tls or None)
    if queue:
        found.queues = queue
    if concurrency:
        found.concurrency = concurrency
    if worker_id:
        found.id = worker_id
    if grace is not None:
        found.shutdown_grace_s = grace
    if transport is not None:
        found.transport = transport
    if process_max_jobs is not None:
        found.processes = replace(found.processes, max_jobs=process_max_jobs)
    if process_max_memory is not None:
        found.processes = replace(found.processes, max_memory_bytes=max(1, process_max_memory))
    found.labels.update(label)
    set_up_logging(log_level, log_format, None if log_format == "json" else log_handler())
    try:
        found.run()
    except RuntimeError as error:
        raise click.UsageError(str(error)) from error


def _without_grpc_in_forks() -> None:
    """Restart this command without gRPC's fork support, which makes forks of handlers crash."""
    if not forks_are_safe() and FORK_VARIABLE not in os.environ:
        os.environ[FORK_VARIABLE] = "false"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def load_worker(path: str) -> Worker:
    """Import the worker that `MODULE[:NAME]` names.

    Raises:
        click.UsageError: There is none.
    """
    module_name, _, name = path.partition(":")
    name = name or "worker"
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = getattr(_import(module_name), name, None)
    if found is None:
        raise click.UsageError(f"the module {module_name} has no {name!r}")
    if not isinstance(found, Worker):
        raise click.UsageError(f"{path} is a {type(found).__name__}, not a jobwire.Worker")
    return found


def _import(name: str) -> ModuleType:
    try:
        known = find_spec(name) is not None
    except (ImportError, ValueError):
        known = False
    if not known:
        raise click.UsageError(f"there is no module {name!r} here or among the installed packages")
    try:
        return importlib.import_module(name)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise click.UsageError(
            f"importing {name} failed: {type(error).__name__}: {error}"
            f" ({place.filename}:{place.lineno})"
        ) from error


def log_handler() -> logging.Handler | None:
    """Return a handler that colours the text log on a terminal; None for plain lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
    handler.setFormatter(TextFormatter(with_time=False))
    return handler
