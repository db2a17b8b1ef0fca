"""The contract as a stranger's tools see it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from jobwire.v1 import (
    admin_service_pb2,
    job_service_pb2,
    schedule_service_pb2,
    worker_service_pb2,
)
from jobwire.v1.errors_pb2 import ErrorReason
from jobwire_server.domain.errors import JobwireError

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
FILES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
WELL_KNOWN = Path(protoc.__file__).parent / "_proto"
PREFIX = "ERROR_REASON_"


def sent_reasons() -> list[str]:
    """The contract's reasons as they travel, but for the one that is never sent."""
    names = [value.name.removeprefix(PREFIX) for value in ErrorReason.DESCRIPTOR.values]
    return [name for name in names if name != "UNSPECIFIED"]


def error_classes(base: type[JobwireError] = JobwireError) -> list[type[JobwireError]]:
    """The base and everything derived from it in the server's errors."""
    derived = [error for child in base.__subclasses__() for error in error_classes(child)]
    return [base, *derived]


@pytest.fixture(scope="module")
def descriptors(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    """The folder as plain protoc compiles it."""
    out = tmp_path_factory.mktemp("descriptors") / "contract.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{WELL_KNOWN}"]
    done = subprocess.run(
        [*command, "--fatal_warnings", f"--descriptor_set_out={out}", *FILES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return FileDescriptorSet.FromString(out.read_bytes())


def test_plain_protoc_compiles_the_folder_as_it_is(descriptors: FileDescriptorSet) -> None:
    assert sorted(file.name for file in descriptors.file) == FILES


def test_the_contract_imports_only_itself_and_the_well_known_types(
    descriptors: FileDescriptorSet,
) -> None:
    foreign = {
        dependency
        for file in descriptors.file
        for dependency in file.dependency
        if dependency not in FILES and not dependency.startswith("google/protobuf/")
    }
    assert foreign == set()


def test_the_contract_has_its_services(descriptors: FileDescriptorSet) -> None:
    services = {service.name for file in descriptors.file for service in file.service}
    assert services == {"JobService", "WorkerService", "AdminService", "ScheduleService"}


def test_every_method_has_messages_of_its_own(descriptors: FileDescriptorSet) -> None:
    used: list[str] = []
    for file in descriptors.file:
        for service in file.service:
            for method in service.method:
                used += [method.input_type, method.output_type]
    assert len(used) == len(set(used))


def test_every_reason_is_that_of_exactly_one_domain_error() -> None:
    # `vars`: an error without a reason of its own has the reason of its base.
    declared = [vars(error)["reason"] for error in error_classes() if "reason" in vars(error)]
    assert sorted(declared) == sorted(sent_reasons())


def test_the_errors_page_has_one_row_for_each_reason() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \|", page, flags=re.MULTILINE)
    assert sorted(rows) == sorted(sent_reasons())


def test_the_states_page_has_a_section_for_each_state(descriptors: FileDescriptorSet) -> None:
    states = {
        value.name.removeprefix("JOB_STATE_")
        for file in descriptors.file
        for enum in file.enum_type
        if enum.name == "JobState"
        for value in enum.value
        # The last two are set aside for later versions.
        if value.number != 0 and value.name not in ("JOB_STATE_BLOCKED", "JOB_STATE_WAITING")
    }
    page = (ROOT / "docs" / "states.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### ([A-Z]+)$", page, flags=re.MULTILINE)) == states


@pytest.mark.processes
def test_the_stubs_are_those_of_the_contract() -> None:
    done = subprocess.run(
        [sys.executable, "tools/generate_protos.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def _of_requests() -> set[str]:
    """Return the names of all messages that callers send."""
    modules = (admin_service_pb2, job_service_pb2, schedule_service_pb2, worker_service_pb2)
    services = [one for m in modules for one in m.DESCRIPTOR.services_by_name.values()]
    found = {method.input_type for service in services for method in service.methods}
    new = found
    while new:
        inner = {field.message_type for message in new for field in message.fields} - {None}
        new = {kind for kind in inner if kind.full_name.startswith("jobwire.")} - found
        found = found | new
    return {message.name for message in found}


def test_each_list_and_map_of_a_request_says_its_bound() -> None:
    sent, unsaid = _of_requests(), []
    for file in FILES:
        message, comment = "", ""
        for line in map(str.strip, (PROTOS / file).read_text(encoding="utf-8").splitlines()):
            if line.startswith("message "):
                message = line.split()[1]
            if line.startswith("//"):
                comment += line
                continue
            many = line.startswith(("repeated ", "map<"))
            if message in sent and many and not re.search(r"\d", comment):
                unsaid.append(f"{message}: {line}")
            comment = ""
    assert not unsaid
