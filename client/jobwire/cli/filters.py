"""The options that say which jobs of a queue are meant."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from jobwire._requests import FilterOptions
from jobwire.cli.parameters import key_value, past
from jobwire.models import FailureOrigin, JobState

F = TypeVar("F", bound=Callable[..., Any])

TERMINAL = [state.value for state in JobState if state.is_terminal]
LIVE = [state.value for state in JobState if not state.is_terminal][1:]


PATTERN = ", or a pattern in quotes: 'billing-*', or '*' for all"
OPERATION = click.option("--operation", "-o", default="", help="Only jobs of this operation.")
FAILURE_TYPE = click.option(
    "--failure-type",
    "-f",
    default="",
    help="Only jobs that failed with this, such as EXECUTION_TIMEOUT.",
)
FAILURE_ORIGIN = click.option(
    "--failure-origin",
    type=click.Choice(["worker", "broker"], case_sensitive=False),
    help="Only jobs whose failure a worker reported, or the broker found.",
)
LABEL = click.option(
    "--label",
    "-l",
    type=key_value,
    metavar="KEY=VALUE",
    multiple=True,
    help="Only jobs with this label.",
)


def states_option(states: list[str], default: str) -> Callable[[F], F]:
    """Make the option that narrows by state."""
    return click.option(
        "--state",
        "-s",
        type=click.Choice(states, case_sensitive=False),
        multiple=True,
        help=f"Only jobs in this state. Repeatable. Default: {default}.",
    )


def filter_options(what: str) -> Callable[[F], F]:
    """Make the decorator that adds the options.

    Args:
        what: What happened to the jobs at the moments that `--since` and `--before` name.
    """
    options = (
        OPERATION,
        FAILURE_TYPE,
        FAILURE_ORIGIN,
        LABEL,
        click.option(
            "--since",
            type=past,
            metavar="TIME|DURATION",
            help=f"Only jobs that {what} since then; 2h is two hours ago.",
        ),
        click.option(
            "--before",
            type=past,
            metavar="TIME|DURATION",
            help=f"Only jobs that {what} before then.",
        ),
    )

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def filter_of(
    *,
    operation: str,
    failure_type: str,
    failure_origin: str | None = None,
    label: tuple[tuple[str, str], ...],
    since: datetime | None,
    before: datetime | None,
    state: tuple[str, ...] = (),
    by_submission: bool = False,
) -> FilterOptions:
    """Turn the options into arguments of the client.

    Args:
        by_submission: True: the moments are those of the submission, False: of the end.
    """
    which: FilterOptions = {
        "states": [JobState(name) for name in state],
        "operation": operation,
        "failure_type": failure_type,
        "labels": dict(label),
    }
    if failure_origin:
        which["failure_origin"] = FailureOrigin(failure_origin.upper())
    if by_submission:
        return {**which, "submitted_after": since, "submitted_before": before}
    return {**which, "finished_after": since, "finished_before": before}
