"""The command line of the benchmarks."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

import click
import uvloop

from benchmarks.figures import Figure, line
from benchmarks.frame import Benchmark, Plan, Size, WrongResult
from benchmarks.installing import CannotInstall
from benchmarks.registry import BENCHMARKS
from benchmarks.stores import Engine

WIDTH = max(map(len, BENCHMARKS))
NAMES = "\n".join(f"  {b.name:<{WIDTH}}  {b.summary}" for b in BENCHMARKS.values())


@click.command(
    help=f"""Run benchmarks: by name, `all`, or `short` (the default), which runs them small.

    \b
{NAMES}
    """.replace("\n  ", "\n    ")
)
@click.argument("names", nargs=-1, type=click.Choice([*BENCHMARKS, "all", "short"]))
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
@click.option(
    "--store",
    type=click.Choice(["valkey", "redis"]),
    help="The bundled Valkey or the installed redis-server.  [default: redis for memory and peers]",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Jobs of a round or of the backlog.")
@click.option("--rounds", type=click.IntRange(min=1), help="How often each side is measured.")
@click.option(
    "--backlog",
    type=click.IntRange(min=1),
    help="Measure with so many jobs waiting against without any, where a benchmark can.",
)
@click.option(
    "--profile",
    "profiles",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write cProfile files of server, worker and producer there, where a benchmark has them.",
)
@click.option("--quiet", is_flag=True, help="Say nothing on the way.")
def main(
    names: tuple[str, ...],
    as_json: bool,
    store: str | None,
    jobs: int | None,
    rounds: int | None,
    backlog: int | None,
    profiles: Path | None,
    quiet: bool,
) -> None:
    """Runs the benchmarks one after the other."""
    names = names or ("short",)
    short = "short" in names
    chosen = [
        b
        for b in BENCHMARKS.values()
        if b.name in names or (short and b.in_short) or "all" in names
    ]

    if profiles is not None:
        profiles = profiles.resolve()
        profiles.mkdir(parents=True, exist_ok=True)

    if backlog is not None:
        unable = [b.name for b in chosen if b.run_backlog is None]
        if unable and set(unable) & set(names):
            raise click.UsageError(f"{', '.join(unable)}: there is no such thing as --backlog")
        chosen = [b for b in chosen if b.run_backlog is not None]

    def say(text: str) -> None:
        if not quiet:
            click.echo(f"  {text}", err=True)

    documents: list[dict[str, Any]] = []
    for benchmark in chosen:
        size = benchmark.short if short else benchmark.full
        plan = Plan(
            Size(jobs or size.jobs, rounds or size.rounds),
            cast(Engine, store or benchmark.engine),
            say,
            profiles,
            backlog or 0,
        )
        if not quiet:
            click.echo(f"{benchmark.name}: {benchmark.summary}", err=True)
        began = time.monotonic()
        try:
            figures = uvloop.run(_run(benchmark, plan))
        except CannotInstall as error:
            if len(chosen) == 1:
                raise click.ClickException(f"{benchmark.name}: {error}") from error
            click.echo(f"  {benchmark.name} is left out: {error}", err=True)
            continue
        except WrongResult as error:
            raise click.ClickException(f"{benchmark.name}: wrong result: {error}") from error
        except asyncio.CancelledError:
            raise click.Abort from None
        say(f"took {time.monotonic() - began:.0f} s")
        if as_json:
            documents.append(_document(benchmark, plan, figures))
        else:
            for figure in figures:
                click.echo(f"{benchmark.name:<{WIDTH}}  {line(figure)}")
    if as_json:
        json.dump({"machine": _machine(), "benchmarks": documents}, sys.stdout, indent=2)
        click.echo()


async def _run(benchmark: Benchmark, plan: Plan) -> list[Figure]:
    task = asyncio.current_task()
    assert task is not None
    # So that what was started is also ended on SIGTERM; Ctrl-C does it by itself.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if plan.backlog and benchmark.run_backlog is not None:
        return await benchmark.run_backlog(plan)
    return await benchmark.run(plan)


def _document(benchmark: Benchmark, plan: Plan, figures: list[Figure]) -> dict[str, Any]:
    return {
        "name": benchmark.name,
        "store": plan.engine,
        "jobs": plan.size.jobs,
        "rounds": plan.size.rounds,
        "backlog": plan.backlog,
        "figures": [figure.as_json() for figure in figures],
    }


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
