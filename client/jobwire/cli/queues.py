"""Commands for queues."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import click

from jobwire.cli.failures import Exit, say
from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.output import (
    DEPTH_STATES,
    plural,
    print_facts,
    print_json,
    print_rows,
    retry_text,
    span,
)
from jobwire.cli.output import size as shown_size
from jobwire.cli.parameters import count, duration, size, span_or_default
from jobwire.cli.terminal import put
from jobwire.models import RetryPolicy
from jobwire.operators import QueueConfig, QueueInfo

Span: TypeAlias = float | Literal["default"] | None


@cli.group(invoke_without_command=True)
@common
@click.pass_context
def queues(context: click.Context) -> None:
    """List the queues; show, configure, pause, resume or delete one."""
    if context.invoked_subcommand is not None:
        return
    settings = context.ensure_object(Settings)
    with settings.client() as client:
        # The list lacks how long jobs have waited.
        found = [client.queue(queue.name) for queue in client.queues()]
    if settings.json:
        for queue in found:
            print_json(queue)
        return
    print_rows(
        ["QUEUE", *(state.value for state in DEPTH_STATES), "OLDEST", "DELIVERS"],
        [_queue_row(queue) for queue in found],
        empty="no queues yet: the first job submitted to a queue creates it",
    )


def _queue_row(queue: QueueInfo) -> list[Any]:
    return [
        queue.name,
        *(queue.counts.get(state, 0) for state in DEPTH_STATES),
        span(queue.oldest_pending_age),
        "paused" if queue.paused else "yes",
    ]


def _print_queue(queue: QueueInfo, settings: Settings) -> None:
    if settings.json:
        print_json(queue)
        return
    rates, totals = queue.rates, queue.totals
    averaged = rates is not None and rates.window.total_seconds() > 0
    print_facts(
        [
            ("queue", queue.name),
            ("delivers", "no, it is paused" if queue.paused else "yes"),
            ("revision", queue.revision),
            *((state.value.lower(), count) for state, count in sorted(queue.counts.items())),
            ("oldest", span(queue.oldest_pending_age)),
            ("live", _of(shown_size(queue.live_bytes), queue.config.max_live_bytes)),
            ("ended", _of(shown_size(queue.ended_bytes), queue.config.max_ended_bytes)),
            ("output", _of(shown_size(queue.output_bytes), queue.config.max_output_bytes)),
            *_settings(queue.config),
            (
                "per second",
                f"{rates.submitted:.1f} submitted, {rates.started:.1f} started,"
                f" {rates.succeeded:.1f} succeeded, {rates.failed:.1f} failed"
                f" (over {span(rates.window)})"
                if rates is not None and averaged
                else None,
            ),
            (
                "totals",
                f"{totals.submitted} submitted, {totals.started} started,"
                f" {totals.succeeded} succeeded, {totals.failed} failed,"
                f" {totals.cancelled} cancelled, {totals.expired} expired,"
                f" {totals.retried} retried, {totals.crashed} crashed, {totals.released} released",
            ),
        ]
    )


def _of(used: str, limit: int) -> str:
    return f"{used} of at most {shown_size(limit)}" if limit else used


def _settings(config: QueueConfig) -> list[tuple[str, str | None]]:
    """Return the settings of a queue that differ from the server's defaults."""
    log = f"{config.event_log_entries} changes"
    if config.retain_event_log is not None:
        log += f", at most {span(config.retain_event_log)} old"
    ageing = config.priority_ageing
    return [
        ("event log", log),
        ("retry", retry_text(config.retry)),
        (
            "takes",
            f"at most {config.max_pending_jobs} waiting jobs" if config.max_pending_jobs else None,
        ),
        ("keeps", f"at most {config.max_ended_jobs} ended jobs" if config.max_ended_jobs else None),
        ("keeps succeeded", _for(config.retain_succeeded)),
        ("keeps others", _for(config.retain_ended)),
        ("keeps output", _for(config.retain_output)),
        (
            "priority",
            f"{config.default_priority} unless a job names one"
            if config.default_priority
            else None,
        ),
        ("ageing", f"one priority higher for each {span(ageing)}" if ageing is not None else None),
    ]


def _for(so_long: timedelta | None) -> str | None:
    return None if so_long is None else f"for {span(so_long)}"


@queues.command("show")
@click.argument("name", default="default")
@common
@pass_settings
def show_queue(settings: Settings, name: str) -> None:
    """Show a queue with its depths, rates and totals."""
    with settings.client() as client:
        _print_queue(client.queue(name), settings)


@queues.command("pause")
@click.argument("name")
@click.option("--create", is_flag=True, help="Create the queue, paused, if there is none.")
@common
@pass_settings
def pause_queue(settings: Settings, name: str, create: bool) -> None:
    """Stop handing out jobs; the queue still accepts new ones."""
    with settings.client() as client:
        _print_queue(client.pause(name, allow_missing=create), settings)


@queues.command("resume")
@click.argument("name")
@common
@pass_settings
def resume_queue(settings: Settings, name: str) -> None:
    """Hand out jobs again."""
    with settings.client() as client:
        _print_queue(client.resume(name), settings)


@queues.command("delete")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask first.")
@common
@pass_settings
def delete_queue(settings: Settings, name: str, yes: bool) -> int:
    """Delete a queue with its ended jobs and its settings.

    They are gone for good. A queue that has live jobs or schedules is not deleted. On a terminal it
    asks first; elsewhere it needs --yes.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("a deleted queue can't be brought back: give --yes")
    with settings.client() as client:
        if not yes:
            queue = client.queue(name)
            ended = plural(sum(queue.counts.values()), "job")
            if not click.confirm(f"Delete the queue {name} with its {ended}?", err=True):
                say("nothing was changed")
                return Exit.INTERRUPTED
        client.delete_queue(name)
    if not settings.json:
        put(f"deleted {name}")
    return Exit.OK


@queues.command("configure")
@click.argument("name")
@click.option(
    "--event-log",
    type=click.IntRange(0, 1_000_000),
    metavar="N",
    help="How many changes of jobs to keep for watchers that reconnect. 0: none.",
)
@click.option(
    "--retain-event-log",
    type=span_or_default,
    metavar="DURATION|default",
    help="How long to keep those changes.",
)
@click.option(
    "--max-output",
    type=size,
    help="Output to keep for all its jobs, such as 1GiB. 0: the server's limit.",
)
@click.option(
    "--retain-output",
    type=span_or_default,
    metavar="DURATION|default",
    help="How long to keep the output of ended jobs.",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="For jobs that do not set it: how many failures end one.",
)
@click.option(
    "--initial-backoff", type=duration, help="For them: the wait before the second attempt."
)
@click.option("--max-backoff", type=duration, help="For them: the longest wait.")
@click.option(
    "--multiplier",
    type=click.FloatRange(1, 10),
    metavar="X",
    help="For them: how much longer each wait is than the one before.",
)
@click.option(
    "--jitter",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="For them: the share of each wait that is random.",
)
@click.option("--no-retry", is_flag=True, help="Remove its retry settings.")
@click.option(
    "--max-pending", type=count, help="Refuse new jobs while this many wait. 0: no limit."
)
@click.option(
    "--max-live-bytes",
    type=size,
    help="Refuse new jobs above this many bytes of live ones. 0: no limit.",
)
@click.option(
    "--retain-succeeded",
    type=span_or_default,
    metavar="DURATION|default",
    help="How long to keep jobs that succeeded.",
)
@click.option(
    "--retain-ended",
    type=span_or_default,
    metavar="DURATION|default",
    help="How long to keep jobs that failed, expired or were cancelled.",
)
@click.option("--max-ended", type=count, help="How many ended jobs to keep. 0: no limit.")
@click.option(
    "--max-ended-bytes", type=size, help="How many bytes of ended jobs to keep. 0: no limit."
)
@click.option(
    "--priority-ageing",
    type=span_or_default,
    metavar="DURATION|default",
    help="Raise a job's priority by one each time it has waited this long.",
)
@click.option(
    "--default-priority",
    type=click.IntRange(0, 255),
    metavar="N",
    help="The priority of new jobs that name none.",
)
@click.option(
    "--revision",
    type=click.IntRange(1),
    metavar="N",
    help="Only if its settings are at this revision, as `queues show` tells it.",
)
@click.option("--create", is_flag=True, help="Create the queue if there is none.")
@common
@pass_settings
def configure_queue(
    settings: Settings,
    name: str,
    event_log: int | None,
    retain_event_log: Span,
    max_output: int | None,
    retain_output: Span,
    max_attempts: int | None,
    initial_backoff: float | None,
    max_backoff: float | None,
    multiplier: float | None,
    jitter: float | None,
    no_retry: bool,
    max_pending: int | None,
    max_live_bytes: int | None,
    retain_succeeded: Span,
    retain_ended: Span,
    max_ended: int | None,
    max_ended_bytes: int | None,
    priority_ageing: Span,
    default_priority: int | None,
    revision: int | None,
    create: bool,
) -> None:
    """Change the settings of a queue; what is not named stays.

    Where an option takes DURATION|default, `default` removes the setting.
    """
    retry = RetryPolicy(
        max_attempts=max_attempts,
        initial_backoff=initial_backoff,
        max_backoff=max_backoff,
        multiplier=multiplier,
        jitter=jitter,
    )
    says_retry = retry != RetryPolicy()
    if says_retry and no_retry:
        raise click.UsageError("--no-retry contradicts the other retry options")
    with settings.client() as client:
        found = client.configure_queue(
            name,
            event_log_entries=event_log,
            max_output_bytes=max_output,
            retry="default" if no_retry else retry,
            max_pending_jobs=max_pending,
            max_live_bytes=max_live_bytes,
            retain_succeeded=retain_succeeded,
            retain_ended=retain_ended,
            max_ended_jobs=max_ended,
            max_ended_bytes=max_ended_bytes,
            retain_output=retain_output,
            retain_event_log=retain_event_log,
            priority_ageing=priority_ageing,
            default_priority=default_priority,
            revision=revision or 0,
            allow_missing=create,
        )
        _print_queue(found, settings)
