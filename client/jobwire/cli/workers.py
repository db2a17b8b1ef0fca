"""Commands for workers."""

from __future__ import annotations

from typing import Any

import click

from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.output import pairs, print_facts, print_json, print_rows, when
from jobwire.cli.terminal import put
from jobwire.operators import WorkerInfo, WorkerStatus

STATUSES = click.Choice([status.value for status in WorkerStatus][1:], case_sensitive=False)


@cli.group(invoke_without_command=True)
@click.option("--queue", "-q", default="", help="Only workers that serve this queue.")
@click.option("--status", "-s", type=STATUSES, help="Only workers with this status.")
@common
@click.pass_context
def workers(context: click.Context, queue: str, status: str | None) -> None:
    """List the workers; show or drain one."""
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
            *("WORKER", "STATUS", "ATTACHED", "HELD", "FREE", "CREDITS"),
            *("ASSIGNED", "SUCCEEDED", "FAILED", "QUEUES", "OPERATIONS", "LABELS"),
            *("BUILD", "TELLS", "LAST SEEN"),
        ],
        [_worker_row(worker) for worker in found],
        empty="no workers",
        spare=(
            *("ASSIGNED", "CREDITS", "BUILD", "TELLS", "SUCCEEDED", "FAILED"),
            *("LAST SEEN", "ATTACHED"),
        ),
    )


def _worker_row(worker: WorkerInfo) -> list[Any]:
    return [
        worker.id,
        _status(worker),
        "yes" if worker.attached else "no",
        worker.held_jobs,
        worker.free,
        # A worker that makes single calls has no credits.
        worker.credits if worker.attached else worker.concurrency or None,
        worker.totals.assigned,
        worker.totals.succeeded,
        worker.totals.failed,
        " ".join(worker.queues),
        " ".join(worker.operations),
        pairs(worker.labels),
        worker.build_id or None,
        pairs(worker.told),
        when(worker.last_seen_at),
    ]


def _status(worker: WorkerInfo) -> str:
    """Return its status, and how many of its slots are taken by handlers that do not stop."""
    if not worker.stuck:
        return str(worker.status.value)
    return f"{worker.status.value}, STUCK {worker.stuck}/{worker.concurrency or '?'}"


@workers.command("show")
@click.argument("worker_id")
@common
@pass_settings
def show_worker(settings: Settings, worker_id: str) -> None:
    """Show a worker and the jobs that it holds."""
    with settings.client() as client:
        worker = client.worker(worker_id)
    if settings.json:
        print_json(worker)
        return
    print_facts(
        [
            ("worker", worker.id),
            ("status", _status(worker)),
            ("queues", " ".join(worker.queues)),
            ("operations", " ".join(worker.operations)),
            ("labels", pairs(worker.labels)),
            ("concurrency", worker.concurrency or None),
            ("client", worker.client),
            ("build", worker.build_id or None),
            ("tells", pairs(worker.told)),
            ("registered", when(worker.registered_at)),
            ("last seen", when(worker.last_seen_at)),
            ("attached", f"to {worker.server_id}" if worker.attached else "no"),
            ("credits", worker.credits or None),
            ("holds", f"{worker.held_jobs} jobs"),
            ("free", worker.free),
            (
                "totals",
                f"{worker.totals.assigned} assigned, {worker.totals.succeeded} succeeded,"
                f" {worker.totals.failed} failed",
            ),
        ]
    )
    if worker.leases:
        put()
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
    """Let a worker finish its jobs and leave; it gets no new ones."""
    with settings.client() as client:
        worker = client.drain_worker(worker_id)
    if settings.json:
        print_json(worker)
    else:
        put(f"{worker.id} is draining; it holds {worker.held_jobs} jobs")
