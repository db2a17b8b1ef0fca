"""`jobwire serve`: options made from the settings, and exit codes that tell what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_args

import click
import structlog
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.domain.server_info import StoreInfo
from jobwire_server.domain.units import format_duration, format_size, printable
from jobwire_server.host.child_process import ProcessDied
from jobwire_server.host.event_loop import calm_the_collector, run, unless
from jobwire_server.host.load_settings import (
    CONFIG_VARIABLE,
    DEFAULT_CONFIG,
    load_settings,
    unknown_variables,
)
from jobwire_server.host.reload import read_again
from jobwire_server.host.server import Application
from jobwire_server.host.settings import PREFIX, Settings
from jobwire_server.host.shared_port import AddressInUse
from jobwire_server.host.signals import Signals, end_without_a_word
from jobwire_server.host.supervisor import Supervisor
from jobwire_server.store.connection.connect import StoreRefused
from jobwire_server.store.connection.urls import redacted
from jobwire_server.telemetry.logs import LogFormat, configure_logs
from jobwire_server.telemetry.standard_streams import (
    complain,
    let_go_of_the_rest,
    open_closed_streams,
    say,
)

PROCESS_DIED, BAD_CONFIGURATION, STORE_REFUSED, ADDRESS_IN_USE = 1, 2, 3, 4

EPILOG = """\b
Exit codes:
  0  stopped as asked
  1  a process died in its start
  2  a setting is wrong
  3  the store can't be used
  4  an address is in use
"""


class ServeCommand(click.Command):
    """A command whose help shows its options in the settings' groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group with its heading; the rest comes last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                field = Settings.model_fields.get(parameter.name or "")
                groups.setdefault(_group(field) if field else "Other", []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _group(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else "Other"


def _shown_default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "shown" in extra:
        return str(extra["shown"])
    default = field.default
    if isinstance(default, timedelta):
        return format_duration(default)
    if isinstance(default, ByteSize):
        return format_size(default)
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(default) if default != "" else "empty"


def _metavar(field: FieldInfo) -> str | None:
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    if choices:
        return f"[{'|'.join(choices)}]"
    kinds: dict[Any, str] = {
        timedelta: "DURATION",
        ByteSize: "SIZE",
        int: "N",
        float: "NUMBER",
        Path: "DIR",
    }
    return kinds.get(field.annotation, "TEXT")


def _option(name: str, field: FieldInfo) -> click.Option:
    flag = f"--{name.replace('_', '-')}"
    help_text = f"{field.description}  [{PREFIX}{name.upper()}; default: {_shown_default(field)}]"
    if field.annotation is bool:
        return click.Option([flag], is_flag=True, default=None, help=help_text)
    return click.Option([flag], metavar=_metavar(field), help=help_text)


def _options() -> list[click.Parameter]:
    config = click.Option(
        ["--config"],
        metavar="FILE",
        help="TOML file with any of these settings, named as in the environment without the"
        f" prefix and in lower case.  [{CONFIG_VARIABLE}; default: ./{DEFAULT_CONFIG}, if there]",
    )
    return [*(_option(name, field) for name, field in Settings.model_fields.items()), config]


def _serve(config: str | None = None, **given: Any) -> None:
    open_closed_streams()
    end_without_a_word()
    flags = {name: value for name, value in given.items() if value is not None}
    try:
        load = partial(load_settings, flags, Path(config) if config else None)
        settings = load()
        for_people = configure_logs(settings.log_format, settings.log_level)
        if "redis_url" in flags and redacted(settings.redis_url) != settings.redis_url:
            structlog.get_logger("jobwire.server").warning(
                "a password on the command line is shown to whoever lists processes: use"
                " --redis-url-file"
            )
        for problem in settings.open_secrets():
            structlog.get_logger("jobwire.server").warning(problem)
        for name in unknown_variables()[1]:
            structlog.get_logger("jobwire.server").warning(
                "a variable of the environment is not a setting, and ignored", variable=name
            )
        serving = _run_alone if settings.processes == 1 else _run_several
        run(serving(settings, for_people, load))
    except ProcessDied as error:
        _give_up(error, PROCESS_DIED)
    except StoreRefused as error:
        _give_up(error, STORE_REFUSED)
    except AddressInUse as error:
        _give_up(error, ADDRESS_IN_USE)
    except ConfigurationError as error:
        _give_up(error, BAD_CONFIGURATION)
    finally:
        let_go_of_the_rest()


def _give_up(error: ConfigurationError, status: int) -> NoReturn:
    for line in error.message.splitlines():
        complain(f"jobwire serve: {line}")
    sys.exit(status)


async def _run_alone(settings: Settings, for_people: bool, load: Callable[[], Settings]) -> None:
    application = Application(settings)
    with Signals() as signals:
        await unless(signals.stopping, application.start())
        if not signals.stopping.is_set():
            calm_the_collector()
            facts = application.facts
            assert facts is not None
            port = application.http.port if application.http is not None else None
            started = Started(
                application.address, port, facts.version, facts.store, facts.server_id
            )
            _tell(settings, for_people, started)
        while await signals.next():
            read_again(settings, load, _log_format(for_people))
            await application.look_at_certificates()
        await application.stop(settings.shutdown_grace.total_seconds(), signals.hurry)


async def _run_several(settings: Settings, for_people: bool, load: Callable[[], Settings]) -> None:
    supervisor = Supervisor(settings, _log_format(for_people))
    with Signals() as signals:
        await unless(signals.stopping, supervisor.start())
        if not signals.stopping.is_set():
            served = supervisor.served
            assert served is not None
            port = supervisor.http.port if supervisor.http is not None else None
            started = Started(supervisor.address, port, served.version, served.store, "")
            _tell(settings, for_people, started)
        while await signals.next():
            supervisor.look_again(read_again(settings, load, _log_format(for_people)))
        await supervisor.stop(settings.shutdown_grace.total_seconds(), signals.hurry)


def _log_format(for_people: bool) -> LogFormat:
    return "console" if for_people else "json"


@dataclass(frozen=True, slots=True)
class Started:
    """What the start came to."""

    address: str
    http_port: int | None
    version: str
    store: StoreInfo
    server_id: str
    """Empty: each process has one of its own, and logs it."""


def _tell(settings: Settings, for_people: bool, started: Started) -> None:
    if for_people:
        say(_banner(settings, started))
        return
    of_one = {"server_id": started.server_id} if started.server_id else {}
    structlog.get_logger("jobwire.server").info(
        "serving",
        **of_one,
        address=started.address,
        http=settings.http_listen,
        store=_store(started.store),
        processes=settings.processes,
    )


def _store(store: StoreInfo) -> str:
    bundled = " (bundled)" if store.embedded else ""
    return f"{store.engine} {store.version}{bundled}, {store.durability}"


def _banner(settings: Settings, started: Started) -> str:
    lines = [("gRPC", started.address + (" (TLS)" if settings.tls_cert else ""))]
    if started.http_port is not None:
        host = settings.http_listen.rpartition(":")[0]
        lines.append(("HTTP", f"http://{host}:{started.http_port}/metrics, /healthz, /readyz"))
    lines.append(("store", _store(started.store)))
    if started.store.embedded:
        lines.append(("data", printable(str(settings.data_dir))))
    if settings.processes > 1:
        lines.append(("runs", f"{settings.processes} processes on one port"))
    plain = "" if settings.tls_cert else "-plaintext "
    job = '{"spec": {"operation": "hello", "payload": {"json": "{}"}}}'
    try_it = f"grpcurl {plain}-d '{job}' {_reachable(started.address)}"
    lines.append(("try", f"{try_it} jobwire.v1.JobService/SubmitJob"))
    body = "\n".join(f"  {name:<6} {value}" for name, value in lines)
    return f"Jobwire {started.version} is serving. Ctrl-C drains and stops it.\n{body}"


def _reachable(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{'localhost' if host in ('0.0.0.0', '[::]') else host}:{port}"


serve = ServeCommand(
    "serve",
    callback=_serve,
    params=_options(),
    short_help="Run a broker.",
    help="Run a broker until SIGTERM or Ctrl-C, which drain it; a second one stops it at once.\n\n"
    "Without settings it keeps its jobs in a bundled Valkey. A flag beats its environment variable"
    " (in brackets), which beats the TOML file, which beats the default. Durations are written"
    " 500ms, 30s, 5m, 1h30m or 14d, sizes 64KiB or 1MiB.",
    epilog=EPILOG,
)
