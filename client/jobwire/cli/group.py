"""The command group, and the options that every command takes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click

import jobwire
from jobwire._connection import ConnectionOptions, Tls, __version__
from jobwire.cli.failures import (
    EXIT_CODES_HELP,
    Exit,
    say,
)
from jobwire.cli.health import Health, health_of
from jobwire.cli.importing import uncollected
from jobwire.cli.parameters import positive_duration
from jobwire.cli.terminal import silence_broken

COMMANDS_GROUP = "jobwire.commands"
_DESTRUCTIVE = {"cancel", "delete", "purge", "redrive"}
# Short, for people at a terminal.
DEFAULT_TIMEOUT_S = 5.0

# Which module registers a command. Only the one that is wanted is imported.
_MODULES = {
    "attempts": "jobs",
    "bench": "bench",
    "cancel": "bulk",
    "completion": "completion",
    "dead": "jobs",
    "get": "jobs",
    "info": "info",
    "list": "jobs",
    "purge": "bulk",
    "queues": "queues",
    "redrive": "bulk",
    "retry": "bulk",
    "run": "run_job",
    "schedules": "schedules",
    "submit": "jobs",
    "top": "top",
    "watch": "watch",
    "worker": "worker",
    "workers": "workers",
}

# `jobwire queue show images` reads as well as `queues`, and `jobs` as `list`.
_SYNONYMS = {"queue": "queues", "schedule": "schedules", "jobs": "list"}

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """What the common options say."""

    target: str | None = None
    json: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    tls: bool | Tls = False

    @property
    def address(self) -> str:
        """Where the servers are."""
        return ConnectionOptions(target=self.target).address

    def health(self) -> Health:
        """Ask the server how it is."""
        return health_of(self.target, self.tls)

    def client(self) -> jobwire.Client:
        """Open a client.

        Raises:
            click.UsageError: An address is malformed.
        """
        try:
            return jobwire.Client(self.target, timeout_s=self.timeout_s, tls=self.tls)
        except ValueError as error:
            raise click.UsageError(f"--target or JOBWIRE_TARGET: {error}") from error


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def common(function: F) -> F:
    """Add the options that every command takes, before or after its name."""

    def keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
        def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
            _check_text(context, parameter, value)
            # Unset at one level must not undo what the level above said.
            if value:
                setattr(context.find_root().ensure_object(Settings), name, value)

        return callback

    for decorate in (
        click.option(
            "--timeout",
            type=positive_duration,
            metavar="DURATION",
            expose_value=False,
            callback=keep("timeout_s"),
            help=f"How long a call may take, such as 500ms. Default: {DEFAULT_TIMEOUT_S:g}s.",
        ),
        click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            callback=keep("json"),
            help="Print one JSON object per line.",
        ),
        click.option(
            "--target",
            metavar="HOST:PORT",
            expose_value=False,
            callback=keep("target"),
            help="Servers, separated by commas. Default: JOBWIRE_TARGET, or 127.0.0.1:50051.",
        ),
    ):
        function = decorate(function)
    return function


class _Checked(click.Command):
    """Checks the arguments of a command, and ends it properly on signals."""

    def invoke(self, ctx: click.Context) -> Any:
        for parameter in self.params:
            _check_text(ctx, parameter, ctx.params.get(parameter.name or ""))
        # A worker handles signals itself; all other commands restore the terminal.
        if self.name == "worker":
            return super().invoke(ctx)
        with _ended_by_signals():
            return super().invoke(ctx)


class _Suggesting(click.Group):
    """A group that suggests what a mistyped name may have meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            ctx.fail(f"No such command {name!r}.{self._meant(name)}")
        return super().resolve_command(ctx, args)

    def _meant(self, name: str) -> str:
        inside = [
            f"`jobwire {group.name} {name}`"
            for group in self.commands.values()
            if isinstance(group, click.Group) and name in group.commands
        ]
        if inside:
            return f" There is {' and '.join(inside)}."
        # A typing error must not lead to a command that ends or purges many jobs.
        safe = [known for known in self.commands if known not in _DESTRUCTIVE]
        near = get_close_matches(name, safe)
        return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


class Command(_Checked):
    """A command of this package."""


class CommandFamily(_Suggesting, _Checked):
    """A command with commands of its own."""

    command_class = Command


def _check_text(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Refuse bytes that are text neither in the locale nor in UTF-8.

    Raises:
        click.BadParameter: With the option's name. Paths and payloads may hold any bytes.
    """
    if isinstance(parameter.type, click.Path) or parameter.name == "payload":
        return
    if isinstance(value, str) and not is_text(value):
        raise click.BadParameter(f"{value!r} is not UTF-8 text", context, parameter)
    if isinstance(value, tuple):
        for one in value:
            _check_text(context, parameter, one)


def is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command through its own clean-up."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    former = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Except what nohup ignores, and what belongs to a program that embeds this one.
        if signal.getsignal(number) is signal.SIG_DFL:
            former[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class CommandGroup(_Suggesting):
    """Commands of this package, and those that installed packages add as entry points."""

    command_class = Command
    group_class = CommandFamily

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # The reader, such as `head`, has gone; what is still buffered is dropped.
            # Click would call it a failure.
            silence_broken()
            return Exit.OK

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_MODULES, *_entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = _SYNONYMS.get(cmd_name, cmd_name)
        if cmd_name in _MODULES:
            _register(cmd_name)
        command = super().get_command(ctx, cmd_name)
        if command is None and (found := _entry_points().get(cmd_name)) is not None:
            return _load(found)
        return command

    def _meant(self, name: str) -> str:
        register_all()
        return super()._meant(name)


def register_all() -> None:
    """Import every command of this package."""
    for command in _MODULES:
        _register(command)


def _register(command: str) -> None:
    with uncollected():
        import_module(f"jobwire.cli.{_MODULES[command]}")


def _entry_points() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=COMMANDS_GROUP)}


def _load(found: EntryPoint) -> click.Command:
    try:
        with uncollected():
            loaded = found.load()
    except ImportError as error:
        return _missing(found.name, error)
    if not isinstance(loaded, click.Command):
        raise TypeError(f"the entry point {found.name} ({found.value}) is not a click command")
    return loaded


def _missing(name: str, error: ImportError) -> click.Command:
    """Stand in for a command whose packages are not installed."""

    @click.command(
        name,
        short_help="(needs: pip install 'jobwire[embedded]')",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
    )
    def command() -> None:
        say(
            f"error: `jobwire {name}` needs packages that are not installed ({error}):"
            " pip install 'jobwire[embedded]'"
        )
        raise click.exceptions.Exit(Exit.USAGE)

    return command


def _pem_option(name: str, variable: str, text: str) -> Callable[[F], F]:
    return click.option(
        name,
        envvar=variable,
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help=f"PEM file. {text} [{variable}]",
    )


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES_HELP,
)
@click.version_option(__version__, prog_name="jobwire")
@click.option("--tls", is_flag=True, envvar="JOBWIRE_TLS", help="Use TLS. [JOBWIRE_TLS]")
@_pem_option("--ca", "JOBWIRE_CA", "The authorities to trust; implies --tls.")
@_pem_option("--client-cert", "JOBWIRE_CLIENT_CERT", "Your certificate; implies --tls.")
@_pem_option("--client-key", "JOBWIRE_CLIENT_KEY", "Its key.")
@common
@click.pass_context
def cli(
    context: click.Context,
    tls: bool,
    ca: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
) -> None:
    """Submit jobs, watch them, run them, and look after the broker."""
    if (client_cert is None) != (client_key is None):
        raise click.UsageError("give --client-cert and --client-key together")
    settings = context.ensure_object(Settings)
    if ca is not None or client_cert is not None:
        settings.tls = Tls(ca_file=ca, certificate_file=client_cert, key_file=client_key)
    else:
        settings.tls = tls
