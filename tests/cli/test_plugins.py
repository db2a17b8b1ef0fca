"""Commands of this package, each imported when it is wanted, and of others."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from importlib.metadata import EntryPoint

import click
import pytest

import jobwire.cli
from jobwire.cli import app, group


@click.command(short_help="Says hello.")
def hello() -> None:
    click.echo("hello")


NOT_A_COMMAND = 1


def offer(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    found = EntryPoint(name="hello", value=value, group=group.COMMANDS_GROUP)
    monkeypatch.setattr(group, "_entry_points", lambda: {"hello": found})


def test_an_entry_point_becomes_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch, f"{__name__}:hello")
    assert app.run(["hello"]) == 0
    assert capsys.readouterr().out == "hello\n"
    assert app.run(["--help"]) == 0
    assert "Says hello." in capsys.readouterr().out


def test_a_command_whose_packages_are_missing_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch, "a_package_that_is_missing:command")
    assert app.run(["hello", "--listen", "x"]) == 2
    assert "pip install 'jobwire[embedded]'" in capsys.readouterr().err
    assert app.run(["--help"]) == 0
    assert "needs: pip install" in capsys.readouterr().out


def test_what_nobody_expected_is_one_line_and_70(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch, f"{__name__}:NOT_A_COMMAND")
    assert app.run(["hello"]) == 70
    error = capsys.readouterr().err
    assert error.startswith("jobwire: internal error: TypeError")
    assert len(error.splitlines()) == 1


def test_every_command_is_found_in_its_module() -> None:
    context = click.Context(group.cli)
    listed = {*group.cli.list_commands(context)} - {"serve"}
    assert all(group.cli.get_command(context, name) for name in listed)
    for module in pkgutil.iter_modules(jobwire.cli.__path__, "jobwire.cli."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    assert {*group.cli.commands} == listed
