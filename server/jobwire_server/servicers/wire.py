"""Answers whose large parts are handed on as the bytes they are.

On the wire a message field and a bytes field look alike. These classes are the contract's messages
with a few message fields declared as bytes, so that a stored record goes into an answer without
being parsed and written anew. They are derived from the contract's descriptors when the server
starts, so they can't drift from it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor

from jobwire.v1 import admin_service_pb2, errors_pb2, job_pb2, job_service_pb2, worker_service_pb2

OPAQUE = {
    "Assignment.checkpoint",
    "Assignment.created_at",
    "Assignment.spec",
    "Failure.details",
    "Job.checkpoint",
    "Job.progress",
    "Job.result",
    "Job.spec",
    "JobEnd.result",
    "ProduceAnswer.results",
    "SubmitJobsResponse.results",
}
"""Fields that these classes take as serialized bytes."""

_PACKAGE = "jobwire.v1"
_DERIVED = "jobwire.wire.v1"


def _derive(pool: descriptor_pool.DescriptorPool, source: FileDescriptor) -> None:
    """Add the derived form of one file of the contract."""
    file = descriptor_pb2.FileDescriptorProto()
    source.CopyToProto(file)
    file.name = file.name.replace("jobwire/v1/", "jobwire/wire/v1/")
    file.package = _DERIVED
    file.ClearField("service")
    for at, dependency in enumerate(file.dependency):
        file.dependency[at] = dependency.replace("jobwire/v1/", "jobwire/wire/v1/")
    for message in file.message_type:
        for field in message.field:
            if f"{message.name}.{field.name}" in OPAQUE:
                field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
                field.ClearField("type_name")
            elif field.type_name.startswith(f".{_PACKAGE}."):
                field.type_name = field.type_name.replace(f".{_PACKAGE}.", f".{_DERIVED}.", 1)
    pool.Add(file)


def _add_well_known(
    pool: descriptor_pool.DescriptorPool, file: FileDescriptor, done: set[str]
) -> None:
    for dependency in file.dependencies:
        if dependency.name.startswith("google/") and dependency.name not in done:
            done.add(dependency.name)
            _add_well_known(pool, dependency, done)
            pool.AddSerializedFile(dependency.serialized_pb)


def _build() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    done: set[str] = set()
    modules = (errors_pb2, job_pb2, job_service_pb2, worker_service_pb2, admin_service_pb2)
    for module in modules:
        _add_well_known(pool, module.DESCRIPTOR, done)
        _derive(pool, module.DESCRIPTOR)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_DERIVED}.{name}"))
        for module in modules
        for name in module.DESCRIPTOR.message_types_by_name
    }


_CLASSES = _build()

Job: Any = _CLASSES["Job"]
Attempt: Any = _CLASSES["Attempt"]
Failure: Any = _CLASSES["Failure"]
Assignment: Any = _CLASSES["Assignment"]
GetJobResponse: Any = _CLASSES["GetJobResponse"]
ListJobsResponse: Any = _CLASSES["ListJobsResponse"]
ListAttemptsResponse: Any = _CLASSES["ListAttemptsResponse"]
WatchJobsResponse: Any = _CLASSES["WatchJobsResponse"]
WatchJobResponse: Any = _CLASSES["WatchJobResponse"]
CancelJobResponse: Any = _CLASSES["CancelJobResponse"]
RetryJobResponse: Any = _CLASSES["RetryJobResponse"]
ClaimJobResponse: Any = _CLASSES["ClaimJobResponse"]
SubmitJobsResponse: Any = _CLASSES["SubmitJobsResponse"]
WorkResponse: Any = _CLASSES["WorkResponse"]
ProduceResponse: Any = _CLASSES["ProduceResponse"]
CompleteJobResponse: Any = _CLASSES["CompleteJobResponse"]


@lru_cache(maxsize=256)
def _around(id_length: int, state: int, in_batch: bool) -> tuple[bytes, bytes]:
    # No length or tag is 0, so that where it is found is unambiguous.
    name = "\0" * id_length
    answer: Any = job_service_pb2.SubmitJobResponse(job_id=name, state=state)  # type: ignore[arg-type]
    if in_batch:
        answer = job_service_pb2.SubmitResult(accepted=answer)
    head, _, tail = answer.SerializeToString().partition(name.encode())
    return head, tail


def accepted(job_id: str, state: int, *, in_batch: bool) -> bytes:
    """Return the serialized answer for a job that was written now.

    Answers that differ in their ids alone are one and the same around it.

    Args:
        job_id: Its id.
        state: Where it stands.
        in_batch: True for a SubmitResult, False for a SubmitJobResponse.
    """
    head, tail = _around(len(job_id), state, in_batch)
    return head + job_id.encode() + tail
