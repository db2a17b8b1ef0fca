"""The names of the package, which are imported when they are first used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import jobwire

STUB = Path(jobwire.__file__).with_suffix(".pyi")


def test_type_checkers_are_told_the_names_that_there_are() -> None:
    told = {
        name.name: source.module or ""
        for source in ast.walk(ast.parse(STUB.read_text(encoding="utf-8")))
        if isinstance(source, ast.ImportFrom)
        for name in source.names
    }
    assert sorted(told) == sorted(jobwire.__all__)
    for name, module in told.items():
        assert getattr(jobwire, name) is getattr(import_module(module), name)
    assert {*jobwire.__all__, "errors", "models"} <= {*dir(jobwire)}


def test_a_module_is_there_without_an_import_of_its_own() -> None:
    assert jobwire.errors.JobNotFound is jobwire.JobNotFound


def test_a_name_that_is_none_is_told_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'jobwire' has no attribute 'Wroker'"):
        _ = jobwire.Wroker  # type: ignore[attr-defined]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("statement", "spared"),
    [
        ("import jobwire.v1.job_pb2", "grpc"),
        ("from jobwire import Client", "jobwire.worker"),
        ("import jobwire.cli.app", "jobwire._sync"),
        ("import jobwire_server.host.command", "jobwire.errors"),
    ],
)
def test_nobody_imports_what_only_others_need(statement: str, spared: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint({spared!r} in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
