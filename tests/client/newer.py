"""A contract that is newer than this release: the same messages, with names and fields added.

Messages are made of its descriptors and sent as bytes, as a newer server would.
"""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from jobwire.v1 import errors_pb2, job_pb2, job_service_pb2, worker_service_pb2

M = TypeVar("M", bound=Message)

NEWER = 77
ENDED = 78
"""A terminal state."""
FIELD = 999
_ENUMS = {
    "JobState": ("JOB_STATE_NEWER", "JOB_STATE_NEWER_END"),
    "AttemptOutcome": ("ATTEMPT_OUTCOME_NEWER",),
    "FailureOrigin": ("FAILURE_ORIGIN_NEWER",),
    "WorkerStatus": ("WORKER_STATUS_NEWER",),
}
_ONEOFS = {"Payload": "kind", "WatchJobResponse": "event", "SubmitResult": "outcome"}


def _grow(file: descriptor_pb2.FileDescriptorProto) -> None:
    for enum in file.enum_type:
        for at, name in enumerate(_ENUMS.get(enum.name, ())):
            enum.value.add(name=name, number=NEWER + at)
    kinds = descriptor_pb2.FieldDescriptorProto
    for message in file.message_type:
        field = message.field.add(
            name="newer", number=FIELD, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL
        )
        if message.name in _ONEOFS:
            names = [oneof.name for oneof in message.oneof_decl]
            field.oneof_index = names.index(_ONEOFS[message.name])


def _add(pool: descriptor_pool.DescriptorPool, file: FileDescriptor, done: set[str]) -> None:
    if file.name in done:
        return
    done.add(file.name)
    for dependency in file.dependencies:
        _add(pool, dependency, done)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    if file.package == "jobwire.v1":
        _grow(proto)
    pool.Add(proto)


_POOL = descriptor_pool.DescriptorPool()
_DONE: set[str] = set()
for _module in (errors_pb2, job_pb2, job_service_pb2, worker_service_pb2):
    _add(_POOL, _module.DESCRIPTOR, _DONE)


def newer(kind: type[M], **fields: Any) -> M:
    """Returns a message of the newer contract, as it arrives here."""
    found = _POOL.FindMessageTypeByName(kind.DESCRIPTOR.full_name)
    made: Any = message_factory.GetMessageClass(found)(**fields)
    return kind.FromString(made.SerializeToString())
