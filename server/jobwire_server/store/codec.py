"""Converts between the store's replies and the model.

The fields of a job's HASH, which are short because there is one set for each job: `s` state, `v`
revision, `t` fencing token, `w` holder, `n` attempts, `a` start of the latest attempt, `f`
failures, `c` crashes, `i` interruptions, `l` lost deliveries, `rt` route, `p` priority, `d` due,
`ps` ready since, `e` end, `pg` when it may be forgotten, `r` short result, `x` 1 with a long one,
`g` progress, `u` its time, `ck` 1 with a checkpoint, `ca` cancel reason, `cd` cancel deadline, `xt`
execution timeout, `ex` expiry, `dl` deadline, `de` 1 where that ended it while it waited, `o` retry
policy, `ra` `rr` `rf` `rn` `rq` moment, reason, state before, number, and request id of the latest
redrive, `b`
bytes of the record, `uk` unique key, `kp` retention of its own, `oe` end of the output, `of` where
what is left of it begins, `ob` its bytes, `ol` its limit, `ot` 1 where the oldest is dropped above
that, `y` 1 where there may be one of `xt`, `dl`, `kp`, `uk` and `ck`. Times are Unix ms.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import asdict
from typing import Any

from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import (
    BEGINNING,
    NO_SETTINGS,
    Attempt,
    Failure,
    FailureOrigin,
    Job,
    JobState,
    Outcome,
    OutputPosition,
    Piece,
    QueueChanges,
    QueueSettings,
    Redrive,
    RetryPolicy,
    WorkerSpec,
    Written,
)

JOB_BYTES = 256
"""What a job has in an answer besides what the store holds of it."""
HISTORY = 100
"""How many of its latest attempts a job shows; end_attempt.lua keeps as many."""


# Settings of a queue -> fields of its HASH `config`.
_SETTINGS = {
    "event_log_entries": "log",
    "max_output_bytes": "max_output",
    "retry": "retry",
    "max_pending_jobs": "max_pending",
    "max_live_bytes": "max_live",
    "retain_succeeded_ms": "keep_succeeded",
    "retain_ended_ms": "keep_ended",
    "max_ended_jobs": "max_ended",
    "max_ended_bytes": "max_ended_bytes",
    "retain_output_ms": "keep_output",
    "retain_event_log_ms": "keep_log",
    "priority_ageing_ms": "ageing",
    "default_priority": "priority",
}


def encode_settings(changes: QueueChanges) -> list[str]:
    """Return changed settings as configure.lua reads them: names and values, '' for a default."""
    args: list[str] = []
    for name, value in changes.items():
        if value == getattr(NO_SETTINGS, name):
            text = ""
        elif isinstance(value, RetryPolicy):
            text = encode_policy(value)
        else:
            text = str(value)
        args += (_SETTINGS[name], text)
    return args


def decode_settings(reply: list[Any] | dict[bytes, bytes]) -> QueueSettings:
    """Read the HASH `config`; ignore what it holds besides settings."""
    if not reply:
        return NO_SETTINGS
    fields = reply if isinstance(reply, dict) else pairs(reply)
    found: dict[str, Any] = {}
    for name, field in _SETTINGS.items():
        raw = fields.get(field.encode())
        if raw is not None:
            found[name] = RetryPolicy(**json.loads(raw)) if name == "retry" else int(raw)
    return QueueSettings(**found)


def settings_revision(reply: list[Any] | dict[bytes, bytes]) -> int:
    """Return the revision of the settings in the HASH `config`."""
    fields = reply if isinstance(reply, dict) else pairs(reply)
    return int(fields.get(b"rev", 0)) + 1


def encode_policy(policy: RetryPolicy) -> str:
    """Return a retry policy as it is stored."""
    fields = {key: value for key, value in asdict(policy).items() if value is not None}
    return json.dumps(fields, separators=(",", ":"))


def encode_failure(failure: Failure | None) -> bytes:
    """Return a failure as it is stored with its attempt, b'' for none."""
    if failure is None:
        return b""
    fields: dict[str, Any] = {"type": failure.type, "message": failure.message}
    if failure.stack:
        fields["stack"] = failure.stack
    if failure.details:
        fields["details"] = b64encode(failure.details).decode()
    if failure.non_retryable:
        fields["final"] = True
    if failure.retry_after_ms is not None:
        fields["after"] = failure.retry_after_ms
    if failure.origin:
        fields["origin"] = int(failure.origin)
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(
        errors="surrogateescape"
    )


def decode_failure(raw: bytes) -> Failure | None:
    """Read back what `encode_failure` wrote."""
    if not raw:
        return None
    fields = json.loads(raw)
    return Failure(
        type=fields["type"],
        message=fields["message"],
        stack=fields.get("stack", ""),
        details=b64decode(fields.get("details", "")),
        non_retryable=fields.get("final", False),
        retry_after_ms=fields.get("after"),
        origin=FailureOrigin(fields.get("origin", 0)),
    )


def decode_attempt(raw: bytes) -> Attempt:
    """Read an entry of a job's history, as end_attempt.lua writes it."""
    head, _, failure = raw.partition(b"\n")
    # What follows the worker only serves repeated calls (include/recorded.lua).
    number, token, started, ended, outcome, worker, *_ = head.split(b" ")
    return Attempt(
        number=int(number),
        worker_id=worker.decode(),
        fencing_token=int(token),
        started_at_ms=int(started),
        ended_at_ms=int(ended),
        outcome=Outcome(int(outcome)),
        failure=decode_failure(failure),
    )


def decode_last_attempt(fields: dict[bytes, bytes]) -> list[Attempt]:
    """Return the attempt that only the HASH has: one that runs, or that succeeded; [] for none."""

    def number(name: bytes) -> int:
        return int(fields.get(name, 0))

    state = JobState(number(b"s") or JobState.PENDING)
    token = number(b"t")
    if not (state.leased or (state is JobState.SUCCEEDED and token)):
        return []
    return [
        Attempt(
            number=number(b"n"),
            worker_id=fields.get(b"w", b"").decode(),
            fencing_token=token,
            started_at_ms=number(b"a"),
            ended_at_ms=0 if state.leased else number(b"e"),
            outcome=None if state.leased else Outcome.SUCCEEDED,
        )
    ]


def pairs(flat: list[Any]) -> dict[bytes, bytes]:
    """Return a reply of alternating fields and values as a mapping."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def decode_position(raw: bytes) -> OutputPosition:
    """Read `<attempt>-<offset>`, b'' as the beginning."""
    attempt, _, offset = raw.partition(b"-")
    return OutputPosition(int(attempt), int(offset)) if raw else BEGINNING


def decode_written(flat: list[bytes]) -> list[Written]:
    """Read pieces of output as follow.lua returns them: id, kind and channel, content."""
    written = []
    pieces = iter(flat)
    for position, tag, content in zip(pieces, pieces, pieces, strict=True):
        attempt, offset = decode_position(position)
        piece = Piece(tag[1:].decode(), tag[:1] == b"t", content)
        written.append(Written(attempt, offset, (piece,)))
    return written


def encode_written(output: Written | None) -> list[str | bytes | int]:
    """Return output as report.lua reads it."""
    if output is None:
        return [0, 0]
    args: list[str | bytes | int] = [output.offset, len(output.pieces)]
    for channel, text, content in output.pieces:
        args += (("t" if text else "b") + channel, content)
    return args


def decode_job(queue: str, ulid: str, row: list[Any], now_ms: int) -> Job:
    """Return a job from a row of read.lua and the time of the reading."""
    record, flat, lease_end, history, long_result, checkpoint = row
    fields = pairs(flat)

    def number(name: bytes) -> int:
        return int(fields.get(name, 0))

    state = JobState(number(b"s") or JobState.PENDING)
    attempts = [decode_attempt(entry) for entry in history]
    attempts += decode_last_attempt(fields)
    worker_id = fields.get(b"w", b"").decode()
    token = number(b"t")
    policy = fields.get(b"o")
    return Job(
        job_id=job_id_of(queue, ulid),
        queue=queue,
        record=record,
        state=state,
        revision=number(b"v") + 1,
        run_at_ms=number(b"d") if state is JobState.SCHEDULED else 0,
        started_at_ms=number(b"a"),
        finished_at_ms=number(b"e") if state.terminal else 0,
        purge_at_ms=number(b"pg") if state.terminal else 0,
        attempt=number(b"n"),
        failures=number(b"f"),
        crashes=number(b"c"),
        interruptions=number(b"i"),
        lost_deliveries=number(b"l"),
        execution_timeout_ms=number(b"xt"),
        priority=number(b"p") if b"p" in fields else None,
        retry=RetryPolicy(**json.loads(policy)) if policy else None,
        progress=fields.get(b"g", b""),
        progress_at_ms=number(b"u"),
        result=long_result or fields.get(b"r", b""),
        checkpoint=checkpoint,
        output_bytes=number(b"ob"),
        output_end=decode_position(fields.get(b"oe", b"")),
        output_first=decode_position(fields.get(b"of", b"")),
        worker_id=worker_id if state.leased else "",
        fencing_token=token,
        lease_expires_at_ms=int(lease_end) if state.leased else 0,
        cancel_reason=fields.get(b"ca", b"").decode(errors="replace"),
        deadline_ms=number(b"dl"),
        missed_deadline=b"de" in fields,
        attempts=tuple(attempts[-HISTORY:]),
        redrive=_decode_redrive(fields) if b"rn" in fields else None,
        read_at_ms=now_ms,
        size=_size(record, flat, history, long_result, checkpoint),
    )


def _size(
    record: bytes, fields: list[bytes] | dict[bytes, bytes], history: list[bytes], *more: bytes
) -> int:
    """Return about how many bytes an answer with the job has, or a few more."""
    values = fields.values() if isinstance(fields, dict) else fields
    return JOB_BYTES + len(record) + sum(map(len, [*values, *history, *more]))


def encode_redrive_request(request_id: str, delay_ms: int) -> str:
    """Return what is kept of the request that redrove a job; '' for one without an id."""
    return f"{request_id} {delay_ms}" if request_id else ""


def _decode_redrive(fields: dict[bytes, bytes]) -> Redrive:
    request_id, _, delay = fields.get(b"rq", b"").decode().partition(" ")
    return Redrive(
        at_ms=int(fields[b"ra"]),
        reason=fields.get(b"rr", b"").decode(errors="replace"),
        from_state=JobState(int(fields[b"rf"])),
        number=int(fields[b"rn"]),
        request_id=request_id,
        delay_ms=int(delay) if delay else None,
    )


def encode_worker(spec: WorkerSpec) -> str:
    """Return a worker's description as it is stored."""
    return json.dumps(
        {
            "queues": spec.queues,
            "operations": sorted(spec.operations),
            "labels": dict(spec.labels),
            "concurrency": spec.concurrency,
            "lease_ms": spec.lease_ms,
            "client": spec.client,
            "build_id": spec.build_id,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def decode_worker(worker_id: str, raw: bytes) -> WorkerSpec:
    """Read back what `encode_worker` wrote."""
    fields = json.loads(raw)
    return WorkerSpec(
        worker_id=worker_id,
        queues=tuple(fields["queues"]),
        operations=frozenset(fields["operations"]),
        labels=fields["labels"],
        concurrency=fields["concurrency"],
        lease_ms=fields["lease_ms"],
        client=fields["client"],
        build_id=fields.get("build_id", ""),
    )
