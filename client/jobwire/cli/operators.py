"""Commands for operators: queues, workers, info."""

from __future__ import annotations

from typing import Any

import click

from jobwire.cli.app import Settings, cli, common, pass_settings
from jobwire.cli.output import pairs, print_facts, print_json, print_rows, span, when
from jobwire.cli.parameters import size
from jobwire.models import JobState
from jobwire.operators import QueueInfo, ServerInfo, WorkerInfo, WorkerStatus

_LIVE = (JobState.PENDING, JobState.SCHEDULED, JobState.RUNNING, JobState.CANCELLING)
STATUSES = click.Choice([status.value for status in WorkerStatus][1:], case_sensitive=False)


@cli.group(invoke_without_command=True)
@common
@click.pass_context
def queues(context: click.Context) -> None:
    """List the queues; show, configure, pause or resume one."""
    if context.invoked_subcommand is not None:
        return
    settings = context.ensure_object(Settings)
    with settings.client() as client:
        found = list(client.queues())
    if settings.json:
        for queue in found:
            print_json(queue)
        return
    columns = ["QUEUE", "PENDING", "SCHEDULED", "RUNNING", "CANCELLING"]
    print_rows(
        [*columns, "SUCCEEDED", "FAILED", "OLDEST", "DELIVERS"],
        [_queue_row(queue) for queue in found],
        empty="no queues yet: the first job submitted to a queue creates it",
    )


def _queue_row(queue: QueueInfo) -> list[Any]:
    return [
        queue.name,
        *(queue.depth.get(state, 0) for state in _LIVE),
        queue.totals.succeeded,
        queue.totals.failed,
        span(queue.oldest_pending_age),
        "paused" if queue.paused else "yes",
    ]


def _print_queue(queue: QueueInfo, settings: Settings) -> None:
    if settings.json:
        print_json(queue)
        return
    limit = queue.config.max_output_bytes
    most = f" of at most {limit}" if limit else ""
    rates, totals = queue.rates, queue.totals
    averaged = rates is not None and rates.window.total_seconds() > 0
    print_facts(
        [
            ("queue", queue.name),
            ("delivers", "no, it is paused" if queue.paused else "yes"),
            *((state.value.lower(), count) for state, count in sorted(queue.depth.items())),
            ("oldest", span(queue.oldest_pending_age)),
            ("event log", f"{queue.config.event_log_entries} changes"),
            ("output", f"{queue.output_bytes} bytes{most}"),
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


@queues.command("show")
@click.argument("name", default="default")
@common
@pass_settings
def show_queue(settings: Settings, name: str) -> None:
    """Show one queue with its depths, rates and totals."""
    with settings.client() as client:
        _print_queue(client.queue(name), settings)


@queues.command("pause")
@click.argument("name")
@common
@pass_settings
def pause_queue(settings: Settings, name: str) -> None:
    """Stop deliveries; the queue goes on accepting jobs."""
    with settings.client() as client:
        _print_queue(client.pause(name), settings)


@queues.command("resume")
@click.argument("name")
@common
@pass_settings
def resume_queue(settings: Settings, name: str) -> None:
    """Start deliveries again."""
    with settings.client() as client:
        _print_queue(client.resume(name), settings)


@queues.command("configure")
@click.argument("name")
@click.option(
    "--event-log",
    type=click.IntRange(0, 1_000_000),
    help="How many changes of jobs to keep, for watchers that come back. 0: none.",
)
@click.option(
    "--max-output", type=size, help="For all its jobs together, such as 1GiB. 0: the server's."
)
@common
@pass_settings
def configure_queue(
    settings: Settings, name: str, event_log: int | None, max_output: int | None
) -> None:
    """Change the settings of a queue; what is not named stays."""
    with settings.client() as client:
        _print_queue(
            client.configure_queue(name, event_log_entries=event_log, max_output_bytes=max_output),
            settings,
        )


@cli.group(invoke_without_command=True)
@click.option("--queue", "-q", default="", help="Only workers that serve it.")
@click.option("--status", "-s", type=STATUSES, help="Only workers of this status.")
@common
@click.pass_context
def workers(context: click.Context, queue: str, status: str | None) -> None:
    """List the workers; show one, or let it go."""
    if context.invoked_subcommand is not None:
        return
    settings = context.ensure_object(Settings)
    wanted = WorkerStatus(status) if status else WorkerStatus.UNSPECIFIED
    with settings.client() as client:
        found = list(client.workers(queue=queue, status=wanted))
    if settings.json:
        for worker in found:
            print_json(worker)
        return
    print_rows(
        [
            *("WORKER", "STATUS", "ATTACHED", "HELD", "CREDITS", "ASSIGNED", "SUCCEEDED", "FAILED"),
            *("QUEUES", "OPERATIONS", "LABELS", "LAST SEEN"),
        ],
        [_worker_row(worker) for worker in found],
        empty="no workers",
    )


def _worker_row(worker: WorkerInfo) -> list[Any]:
    return [
        worker.id,
        worker.status.value,
        "yes" if worker.attached else "no",
        worker.held_jobs,
        # A worker that makes single calls has no credits.
        worker.credits if worker.attached else worker.concurrency or None,
        worker.totals.assigned,
        worker.totals.succeeded,
        worker.totals.failed,
        " ".join(worker.queues),
        " ".join(worker.operations),
        pairs(worker.labels),
        when(worker.last_seen_at),
    ]


@workers.command("show")
@click.argument("worker_id")
@common
@pass_settings
def show_worker(settings: Settings, worker_id: str) -> None:
    """Show one worker with the jobs that it holds."""
    with settings.client() as client:
        worker = client.worker(worker_id)
    if settings.json:
        print_json(worker)
        return
    print_facts(
        [
            ("worker", worker.id),
            ("status", worker.status.value),
            ("queues", " ".join(worker.queues)),
            ("operations", " ".join(worker.operations)),
            ("labels", pairs(worker.labels)),
            ("concurrency", worker.concurrency or None),
            ("client", worker.client),
            ("registered", when(worker.registered_at)),
            ("last seen", when(worker.last_seen_at)),
            ("attached", f"to {worker.server_id}" if worker.attached else "no"),
            ("credits", worker.credits or None),
            ("holds", f"{worker.held_jobs} jobs"),
            (
                "totals",
                f"{worker.totals.assigned} assigned, {worker.totals.succeeded} succeeded,"
                f" {worker.totals.failed} failed",
            ),
        ]
    )
    if worker.leases:
        click.echo()
        print_rows(
            ["JOB", "TOKEN"],
            [[lease.job_id, lease.fencing_token] for lease in worker.leases],
            empty="",
        )


@workers.command("drain")
@click.argument("worker_id")
@common
@pass_settings
def drain_worker(settings: Settings, worker_id: str) -> None:
    """Let one worker finish its jobs and leave; it gets no new ones."""
    with settings.client() as client:
        worker = client.drain_worker(worker_id)
    if settings.json:
        print_json(worker)
    else:
        click.echo(f"{worker.id} is to leave; it holds {worker.held_jobs} jobs")


def _processes(server: ServerInfo) -> str:
    if server.processes == 1:
        return "1"
    return f"{server.processes} on one port; number {server.process_index} answered"


@cli.command()
@common
@pass_settings
def info(settings: Settings) -> None:
    """Show the server, its store, and its limits."""
    with settings.client() as client:
        found = client.server_info()
    if settings.json:
        print_json(found)
        return
    embedded = ", run by the server" if found.store_embedded else ""
    print_facts(
        [
            ("server", found.server_id),
            ("processes", _processes(found)),
            ("version", found.version),
            ("started", when(found.started_at)),
            ("store", f"{found.store_engine} {found.store_version}{embedded}"),
            ("durability", found.store_durability),
            ("store time", when(found.store_time)),
            ("payload", f"at most {found.max_payload_bytes} bytes"),
            ("result", f"at most {found.max_result_bytes} bytes"),
            ("batch", f"at most {found.max_batch_jobs} jobs"),
            ("message", f"at most {found.max_message_bytes} bytes"),
        ]
    )
