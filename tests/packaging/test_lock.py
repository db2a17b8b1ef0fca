"""The lock files: complete, hashed, and without a place to install from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ["dev.txt", "server.txt"]


def entries(name: str) -> list[str]:
    """The lock's logical lines, each a requirement with its hashes."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def versions(name: str) -> dict[str, str]:
    pins = (re.match(r"([\w.-]+)==(\S+)", line) for line in entries(name))
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def asked_for() -> list[Requirement]:
    """Everything that pyproject.toml asks for, the project's own extras left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
    ]
    for extra in project["project"]["optional-dependencies"].values():
        lines += extra
    return [requirement for requirement in map(Requirement, lines) if requirement.name != "jobwire"]


@pytest.mark.parametrize("requirement", asked_for(), ids=str)
def test_the_lock_satisfies_what_pyproject_asks_for(requirement: Requirement) -> None:
    locked = versions("dev.txt")[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(locked)


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_one_version_and_hashes(name: str) -> None:
    assert len(versions(name)) == len(entries(name))
    without = [line.split()[0] for line in entries(name) if "--hash=sha256:" not in line]
    assert without == []


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_names_no_place_to_install_from(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    assert re.findall(r"https?:|--(?:extra-)?index-url|--find-links| @ ", text) == []


def test_the_servers_lock_is_a_part_of_the_whole() -> None:
    assert versions("server.txt").items() < versions("dev.txt").items()
