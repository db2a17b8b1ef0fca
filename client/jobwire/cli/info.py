"""The command that shows a server."""

from __future__ import annotations

from jobwire.cli.group import Settings, cli, common, pass_settings
from jobwire.cli.health import Health
from jobwire.cli.output import print_facts, print_json, when
from jobwire.operators import ServerInfo


def _processes(server: ServerInfo) -> str:
    if server.processes == 1:
        return "1"
    return f"{server.processes} on one port; number {server.process_index} answered"


_READY = {
    Health.READY: "yes",
    Health.NOT_READY: "no: its store does not answer, or it is about to end",
    Health.SILENT: "no: it has fallen silent",
}


@cli.command()
@common
@pass_settings
def info(settings: Settings) -> None:
    """Show the server, its store, and its limits."""
    with settings.client() as client:
        found = client.server_info()
    health = settings.health()
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
            ("ready", _READY[health]),
            ("store", f"{found.store_engine} {found.store_version}{embedded}"),
            *([("problem", found.store_problem)] if found.store_problem else []),
            ("features", " ".join(found.features)),
            ("durability", found.store_durability),
            ("store time", when(found.store_time)),
            ("payload", f"at most {found.max_payload_bytes} bytes"),
            ("result", f"at most {found.max_result_bytes} bytes"),
            ("batch", f"at most {found.max_batch_jobs} jobs"),
            ("queues", f"at most {found.max_queues}" if found.max_queues else None),
            ("message", f"at most {found.max_message_bytes} bytes"),
        ]
    )
