"""What every field may hold. A mistake becomes a violation that names the field and the remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from jobwire.v1 import job_pb2
from jobwire_server.domain.errors import InvalidRequest, TooLarge, Unsupported, Violation
from jobwire_server.domain.features import FEATURES
from jobwire_server.domain.ids import DEFAULT_QUEUE, is_queue, split_job_id
from jobwire_server.domain.model import (
    RetryPolicy,
)
from jobwire_server.servicers.json_text import check_json
from jobwire_server.servicers.struct_text import StructError, struct_text

DAY_MS = 86_400_000
A_SECOND_NS = 1_000_000_000
TEN_YEARS_MS = 3653 * DAY_MS
MAX_REASON_BYTES = 512
"""Of why a job or a worker is treated so, for people."""
MAX_LABELS = 16
MAX_LABEL_BYTES = 63
MAX_STATES = 16
MAX_VIOLATIONS = 100
"""That are noted of one request; of more only the number is told."""
MAX_QUEUES = 64
MAX_METADATA_BYTES = 4 << 10
MAX_HEADERS = 64
MAX_HEADERS_BYTES = 8 << 10
MAX_FEATURES = 16
"""That a request may require."""

TURN_S = 0.005
"""After so long with one request other calls have their turn."""
MAX_PATH = 300
"""Characters of a path into a payload that is told."""
_LONGEST_OPERATION = 128
_OPERATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}")
_LABEL_KEY = re.compile(r"[A-Za-z0-9._/-]{1,63}")
_LABEL_KEY_WORDS = "1 to 63 characters out of letters, digits and . _ / -"
_HEADER_KEY = re.compile(r"[a-z0-9._-]{1,128}")
_HEADER_KEY_WORDS = "1 to 128 characters out of lower-case letters, digits and . _ -"
_FEATURE = re.compile(r"[a-z0-9_]{1,64}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_WORKER_ID = re.compile(r"[A-Za-z0-9._:@-]{1,64}")


class Checker:
    """Gathers the violations of one request, so that its sender learns of all of them at once.

    Args:
        prefix: Of the paths of all fields: where the request has what is checked.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self.violations: list[Violation] = []
        self._left_out = 0
        self.too_large = False
        self.only_now = True
        self._lacking: list[str] = []
        """Features."""
        """True while nothing was noted that was wrong at every time and with all settings."""

    def add(self, field: str, description: str, *, now: bool = False) -> None:
        """Note what is wrong with a field, and what would be right.

        Args:
            field: Its path from the request.
            description: For people.
            now: True if the same may have been right before: it depends on the time or on a setting
                of the server.
        """
        self.only_now &= now
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(Violation(self._prefix + field, description))
        else:
            self._left_out += 1

    def raise_if_any(self) -> None:
        """Refuse the request if anything was noted.

        Raises:
            InvalidRequest: With every violation; TooLarge if a size was among them.
        """
        if self.violations:
            raise self.error()

    def refusal(self) -> InvalidRequest | None:
        """Return what was noted, None if nothing was."""
        return self.error() if self.violations else None

    def error(self) -> InvalidRequest:
        """Return what was noted, as the refusal of the request."""
        if self._lacking and len(self._lacking) == len(self.violations):
            return Unsupported(self.violations, self._lacking[0])
        kind = TooLarge if self.too_large else InvalidRequest
        return kind(self.violations, self._left_out)

    def queue(self, field: str, name: str, *, required: bool = False) -> str:
        """Return the queue's name, the default one for an unset field."""
        if not name and not required:
            return DEFAULT_QUEUE
        if not is_queue(name):
            self.add(
                field,
                "must be a queue name: 1 to 63 characters out of a-z 0-9 . _ - that begin and end"
                f" with a letter or a digit, not {name[:80]!r}",
            )
        return name

    def queues(self, field: str, names: Sequence[str], most: int = MAX_QUEUES) -> tuple[str, ...]:
        """Return the names of queues, each once; none if there are too many."""
        if len(names) > most:
            self.add(field, f"may name at most {most}, not {len(names)}")
            return ()
        for at, name in enumerate(names):
            self.queue(f"{field}[{at}]", name, required=True)
        return tuple(dict.fromkeys(names))

    def job_id(self, field: str, job_id: str) -> tuple[str, str]:
        """Return the queue and the ULID of a job id."""
        parts = split_job_id(job_id)
        if parts is None:
            self.add(
                field,
                "must be a job id: <queue>-<26 lower-case ULID characters>, as it was given out,"
                f" not {job_id[:120]!r}",
            )
            return "", ""
        return parts

    def operation(self, field: str, name: str) -> None:
        """Check an operation's name."""
        if not is_operation(name):
            self.add(
                field,
                "must be an operation name: 1 to 128 characters out of letters, digits and . _ /"
                f" : - that begin with a letter or a digit, not {name[:140]!r}",
            )

    def request_id(self, field: str, request_id: str, most: int = 64) -> None:
        """Check the id of a request."""
        if len(request_id) > most or not _REQUEST_ID.fullmatch(request_id):
            self.add(
                field,
                f"must be 1 to {most} characters out of letters, digits and . _ : -, for example a"
                f" UUID, not {request_id[:80]!r}",
            )

    def worker_id(self, field: str, worker_id: str) -> str:
        """Check a worker's id; return it."""
        if not _WORKER_ID.fullmatch(worker_id):
            self.add(
                field,
                "must be a worker id: 1 to 64 characters out of letters, digits and . _ : @ -, not"
                f" {worker_id[:80]!r}",
            )
        return worker_id

    def labels(
        self,
        field: str,
        labels: Mapping[str, str],
        most: int = MAX_LABELS,
        most_bytes: int = MAX_LABEL_BYTES,
    ) -> None:
        """Check a map of labels, or of what has their form and values of another length."""
        for key in self._keys(field, labels, most):
            if len(labels[key].encode()) > most_bytes:
                self.add(f"{field}[{key!r}]", f"must have a value of at most {most_bytes} bytes")

    def headers(self, field: str, headers: Mapping[str, str]) -> None:
        """Check the headers of a job."""
        if self._keys(field, headers, MAX_HEADERS, _HEADER_KEY, _HEADER_KEY_WORDS):
            size = sum(len(key.encode()) + len(value.encode()) for key, value in headers.items())
            self._together(field, size, MAX_HEADERS_BYTES)

    def _keys(
        self,
        field: str,
        entries: Mapping[str, object],
        most: int,
        form: re.Pattern[str] = _LABEL_KEY,
        words: str = _LABEL_KEY_WORDS,
    ) -> list[str]:
        """Check the keys of a map; return those that are right, none of a map that is too long."""
        if len(entries) > most:
            self.add(field, f"may have at most {most} entries, not {len(entries)}")
            return []
        right = []
        for key in entries:
            if form.fullmatch(key):
                right.append(key)
            else:
                self.add(f"{field}[{key[:80]!r}]", f"must have a key of {words}")
        return right

    def _together(self, field: str, size: int, most: int) -> None:
        if size > most:
            self.add(field, f"may have at most {most} bytes together, not {size}")

    def features(self, field: str, names: Sequence[str]) -> None:
        """Check the features that a request requires; note one that this server lacks."""
        if len(names) > MAX_FEATURES:
            self.add(field, f"may name at most {MAX_FEATURES}, not {len(names)}")
            return
        for at, name in enumerate(names):
            if not _FEATURE.fullmatch(name):
                self.add(
                    f"{field}[{at}]",
                    "must be a feature's name: 1 to 64 characters out of lower-case letters, digits"
                    f" and _, not {name[:80]!r}",
                )
            elif name not in FEATURES:
                self.lacks(f"{field}[{at}]", name)

    def lacks(self, field: str, feature: str) -> None:
        """Note that a field needs a feature that this server does not have."""
        self.add(
            field,
            f"needs the feature {feature!r}, which this server does not have (GetServerInfo lists"
            " its features): leave it out, or use a newer server",
            now=True,
        )
        self._lacking.append(feature)

    def take_over(self, error: InvalidRequest, field: str, inside: str, *, now: bool) -> None:
        """Note what is wrong with a part that was checked as a request of its own.

        Args:
            error: Of that request.
            field: Of which field there; what is wrong with others is left out.
            inside: Where this request has that field.
            now: As for `add`.
        """
        before = len(self.violations)
        for violation in error.violations:
            if violation.field.startswith(field):
                path = inside + violation.field.removeprefix(field)
                self.add(path, violation.description, now=now)
        self.too_large |= error.reason == "TOO_LARGE"
        if isinstance(error, Unsupported):
            self._lacking += [error.metadata["feature"]] * (len(self.violations) - before)

    def text(self, field: str, text: str, most: int) -> str:
        """Check the length of a text in bytes."""
        if len(text) > most or len(text.encode()) > most:
            self.add(field, f"may have at most {most} bytes, not {len(text.encode())}")
        return text

    def duration_ms(self, field: str, duration: Duration, least: int, most: int) -> int:
        """Return a duration in milliseconds, rounded up so that a short one is not none."""
        seconds, nanos = duration.seconds, duration.nanos
        value = seconds * 1000 + -(-nanos // 1_000_000)
        if not -A_SECOND_NS < nanos < A_SECOND_NS or seconds * nanos < 0:
            # What is stored comes back as it came, and no reader takes such a one.
            self.add(f"{field}.nanos", "must be below a second, with the sign of the seconds")
        elif not least <= value <= most:
            self.add(field, f"must be {_span(least)} to {_span(most)}, not {_span(value)}")
        return value

    def moment_ms(self, field: str, moment: Timestamp, latest: int) -> int:
        """Return a moment in Unix milliseconds, rounded up."""
        value = moment.seconds * 1000 + -(-moment.nanos // 1_000_000)
        if not 0 <= moment.nanos < A_SECOND_NS:
            self.add(f"{field}.nanos", "must be 0 to 999999999")
        elif not 0 < value <= latest:
            text = "must be a moment after 1970 and at most 10 years ahead"
            self.add(field, text, now=value > latest)
        return value

    def number(self, field: str, value: int, least: int, most: int) -> int:
        """Check a number; return it."""
        if not least <= value <= most:
            self.add(field, f"must be {least} to {most}, not {value}")
        return value

    def count(self, field: str, value: int, least: int, most: int, unset: int) -> int:
        """Return a number, `unset` for 0."""
        if value == 0:
            return unset
        return self.number(field, value, least, most)

    def payload(self, field: str, payload: job_pb2.Payload, most: int) -> None:
        """Check a payload, and turn a struct into the JSON text that it stands for."""
        kind = payload.WhichOneof("kind")
        if payload.metadata:
            self._metadata(f"{field}.metadata", payload.metadata)
        if kind is None and len(UnknownFieldSet(payload)):
            self.add(
                field,
                "has a kind of content that this server does not know, and would be lost: use json,"
                " data, message or struct, or a newer server",
            )
        if kind == "struct":
            try:
                payload.json = struct_text(payload.struct)
            except StructError as error:
                self.add(f"{field}.struct{error.path[:MAX_PATH]}", str(error))
        size = payload.ByteSize()
        # A text that is too large anyway is not read.
        if kind == "json" and size <= most:
            try:
                check_json(payload.json)
            except ValueError as error:
                self.add(f"{field}.json", str(error))
        if size > most:
            self.too_large = True
            self.add(
                field,
                f"has {size} bytes, the server takes at most {most}; store the content elsewhere"
                " and send a reference, or raise the limit",
                now=True,
            )

    def _metadata(self, field: str, entries: Mapping[str, bytes]) -> None:
        if self._keys(field, entries, MAX_LABELS):
            size = sum(len(key.encode()) + len(value) for key, value in entries.items())
            self._together(field, size, MAX_METADATA_BYTES)


def is_operation(name: str) -> bool:
    """True for a well-formed operation name."""
    # Before the cache, which must not keep megabytes of nonsense.
    return len(name) <= _LONGEST_OPERATION and _is_operation(name)


@lru_cache(maxsize=4096)
def _is_operation(name: str) -> bool:
    return _OPERATION.fullmatch(name) is not None


def is_sound(payload: job_pb2.Payload) -> bool:
    """True for a payload that `Checker.payload` would neither change nor find fault with, but for
    its size.
    """
    kind = payload.WhichOneof("kind")
    if kind == "json":
        try:
            check_json(payload.json)
        except ValueError:
            return False
    if kind is None:
        # Empty, as a handler returns nothing; else metadata, or a kind that is not known.
        return payload.ByteSize() == 0
    return kind != "struct" and not payload.metadata


def _span(ms: int) -> str:
    """Write a duration for people."""
    for unit, size in (("day", DAY_MS), ("hour", 3_600_000), ("minute", 60_000)):
        if abs(ms) >= size and ms % size == 0:
            return f"{ms // size} {unit}" + ("" if ms == size else "s")
    if abs(ms) >= 1000 and ms % 1000 == 0:
        return f"{ms // 1000} s"
    return f"{ms} ms"


def check_retry(checker: Checker, field: str, retry: job_pb2.RetryPolicy) -> RetryPolicy:
    """Return the retry fields that a message sets."""
    initial = longest = None
    if retry.HasField("initial_backoff"):
        initial = checker.duration_ms(f"{field}.initial_backoff", retry.initial_backoff, 0, DAY_MS)
    if retry.HasField("max_backoff"):
        longest = checker.duration_ms(f"{field}.max_backoff", retry.max_backoff, 0, 30 * DAY_MS)
        if initial is not None and longest < initial:
            checker.add(f"{field}.max_backoff", "must not be below initial_backoff")
    max_attempts = retry.max_attempts if retry.HasField("max_attempts") else None
    if max_attempts is not None:
        checker.number(f"{field}.max_attempts", max_attempts, 1, 1000)
    multiplier = retry.multiplier if retry.HasField("multiplier") else None
    # `not (a <= x <= b)` also refuses NaN.
    if multiplier is not None and not (1 <= multiplier <= 10):
        checker.add(f"{field}.multiplier", f"must be 1 to 10, not {multiplier}")
    jitter = retry.jitter if retry.HasField("jitter") else None
    if jitter is not None and not (0 <= jitter <= 1):
        checker.add(f"{field}.jitter", f"must be 0 to 1, not {jitter}")
    return RetryPolicy(
        max_attempts=max_attempts,
        initial_backoff_ms=initial,
        max_backoff_ms=longest,
        multiplier=multiplier,
        jitter=jitter,
    )
