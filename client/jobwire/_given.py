"""What a handler is given: the job, as it was handed to its worker."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

from google.protobuf.message import Message

from jobwire._convert import moment_of
from jobwire.payloads import from_payload
from jobwire.v1 import job_pb2, worker_service_pb2

M = TypeVar("M", bound=Message)


class GivenJob:
    """A job, read from its assignment. Most handlers read little of it, so each part is made when
    it is asked for.
    """

    # Set by `Context` itself: a constructor here would be one more call for each job.
    _assignment: worker_service_pb2.Assignment

    @property
    def operation(self) -> str:
        """The job's type."""
        return self._assignment.spec.operation

    @property
    def attempt(self) -> int:
        """1 for the first delivery."""
        return self._assignment.attempt

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """The producer's labels of the job."""
        return dict(self._assignment.spec.labels)

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """What travels with the job for other programs, such as `traceparent`."""
        return dict(self._assignment.spec.headers)

    @property
    def created_at(self) -> datetime | None:
        """When the broker accepted the job, in UTC; None in a test that does not say."""
        return moment_of(self._assignment, "created_at")

    @property
    def raw_payload(self) -> job_pb2.Payload:
        """The input as it came. JSON text is in its field `json`."""
        return self._assignment.spec.payload

    @cached_property
    def payload_metadata(self) -> Mapping[str, bytes]:
        """What the producer told programs of the input: a codec, a content type, a key's id."""
        return dict(self.raw_payload.metadata)

    @cached_property
    def payload(self) -> Any:
        """The input as a Python value: parsed JSON, bytes, an `Any`, or None if there is none.

        One of a kind that only later releases can read raises `UnknownPayload`.
        """
        return from_payload(self.raw_payload)

    def payload_as(self, message_type: type[M]) -> M:
        """Return the input as a protobuf message.

        Raises:
            TypeError: The input is another message, or bytes.
        """
        return from_payload(self.raw_payload, message_type)

    @property
    def raw_checkpoint(self) -> job_pb2.Payload:
        """What the latest attempt saved, as it came; empty if nothing was."""
        return self._assignment.checkpoint

    @cached_property
    def checkpoint(self) -> Any:
        """What the latest attempt saved as a Python value; None if nothing was."""
        return from_payload(self.raw_checkpoint)
