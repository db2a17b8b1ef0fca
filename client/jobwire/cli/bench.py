"""`jobwire bench`: how fast the servers are."""

from __future__ import annotations

import asyncio
import re
import socket
from datetime import timedelta

import click

from jobwire._async.client import AsyncClient
from jobwire.cli.failures import Exit, say
from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.measurement import QUEUE_PREFIX, BenchFailed, BenchResult, Latency, Load, measure
from jobwire.cli.output import print_json, print_rows
from jobwire.cli.parameters import size
from jobwire.cli.terminal import put
from jobwire.worker import Worker
from jobwire.worker.host import loop_factory


@cli.command()
@click.option(
    "--jobs",
    "-n",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=10_000,
    show_default=True,
    help="How many jobs to send through.",
)
@click.option(
    "--payload", type=size, default="256", show_default=True, help="The size of each payload."
)
@click.option(
    "--batch",
    type=click.IntRange(1, 500),
    metavar="N",
    default=100,
    show_default=True,
    help="How many jobs a call submits; 1: each by itself.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 1_000),
    metavar="N",
    default=8,
    show_default=True,
    help="How many calls are under way at once.",
)
@click.option(
    "--concurrency",
    "-c",
    type=click.IntRange(1, 5_000),
    metavar="N",
    default=500,
    show_default=True,
    help="How many jobs the worker runs at once.",
)
@click.option(
    "--name",
    help=f"The name of its queue after {QUEUE_PREFIX!r}. Default: this machine's name.",
)
@common
@pass_settings
def bench(
    settings: Settings,
    jobs: int,
    payload: int,
    batch: int,
    in_flight: int,
    concurrency: int,
    name: str | None,
) -> None:
    """Measure how fast the servers accept and finish jobs.

    Sends jobs that do nothing through a queue of its own, to a worker in this process. No other
    queue is touched, and the jobs are purged at the end. The servers, their store and everybody who
    uses them feel the load.
    """
    load = Load(
        queue=QUEUE_PREFIX + (name or _machine()),
        jobs=jobs,
        payload_bytes=payload,
        batch=batch,
        in_flight=in_flight,
        concurrency=concurrency,
    )
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            result = runner.run(_measure(settings, load))
    except BenchFailed as error:
        say(f"error: {error}")
        raise click.exceptions.Exit(Exit.UNSUCCESSFUL) from error
    if settings.json:
        print_json(result)
    else:
        _show(result)


async def _measure(settings: Settings, load: Load) -> BenchResult:
    worker = Worker(
        settings.target,
        queues=[load.queue],
        concurrency=load.concurrency,
        prefetch=load.concurrency,
        tls=settings.tls,
    )
    target, tls = settings.target, settings.tls
    async with AsyncClient(target, timeout_s=settings.timeout_s, tls=tls) as client:
        return await measure(client, worker, load, lambda text: put(text, err=True))


def _show(result: BenchResult) -> None:
    put(
        f"{result.jobs:,} jobs of {result.payload_bytes:,} bytes, {result.batch} a call,"
        f" {result.in_flight} calls at once"
    )
    put(f"submitted  {result.submitted_per_s:,.0f} jobs/s")
    put(f"done       {result.done_per_s:,.0f} jobs/s, from the first submission")
    put(f"one by one {result.submit_one_per_s:,.0f} submissions/s while nobody works")
    put(f"calls      {result.calls_per_s:,.0f} results/s, {result.calls_in_flight} awaited at once")
    print_rows(
        ("LATENCY", "P50", "P90", "P99", "MAX"),
        (
            _row("to start, full speed", result.start_latency),
            _row("to done, full speed", result.done_latency),
            _row("to start, one by one", result.idle_start_latency),
            _row("to done, one by one", result.idle_done_latency),
            _row("submit, one by one", result.submit_one_latency, decimals=2),
            _row("call, one by one", result.call_latency, decimals=2),
            _row(f"call, {result.calls_in_flight} at once", result.calls_latency, decimals=2),
        ),
        empty="",
    )


def _row(name: str, latency: Latency, *, decimals: int = 0) -> tuple[str, ...]:
    spans = (latency.p50, latency.p90, latency.p99, latency.most)
    return (name, *(f"{one / timedelta(milliseconds=1):,.{decimals}f} ms" for one in spans))


def _machine() -> str:
    """Return this machine's name as a queue's name can hold it."""
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")
    return name[:40].rstrip("-") or "here"
