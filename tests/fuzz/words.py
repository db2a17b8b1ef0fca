"""Values by the names of fields: good ones, so that a request gets far, and odd ones."""

from __future__ import annotations

QUEUES = ("default", "fuzz-a", "fuzz-b", "fuzz-c", "fuzz-d")
OPERATIONS = ("op", "op.b", "op.c")
WORKERS = tuple(f"w{number}" for number in range(12))

STRINGS: dict[str, tuple[str, ...]] = {
    "queue": QUEUES,
    "operation": OPERATIONS,
    "worker_id": WORKERS,
    "instance_id": ("i1", "i1", "i1", "i2"),
    "schedule_id": tuple(f"s{number}" for number in range(12)),
    "request_id": tuple(f"req-{number}" for number in range(60)),
    "key": ("k1", "k2", "k3", "k4"),
    "channel": ("stdout", "stderr", "log"),
    "text": ("one\n", "two\n", "ü€😀\n"),
    "type": ("Timeout", "ValueError", "CRASHED_TOO_OFTEN"),
    "failure_type": ("Timeout", "ValueError"),
    "expression": ("* * * * *", "*/5 8-17 * * 1-5", "0 0 1 1 *", "@daily"),
    "time_zone": ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"),
    "service": ("", "jobwire.v1.JobService", "grpc.health.v1.Health"),
    "file_by_filename": ("jobwire/v1/job.proto", "google/protobuf/any.proto"),
    "file_containing_symbol": ("jobwire.v1.Job", "jobwire.v1.JobService.SubmitJob"),
    "json": ("{}", "null", '{"a": [1, 2.5, "three"]}', '"text"', "[" * 50 + "]" * 50),
    "paths": ("retry", "retain_ended", "max_pending_jobs", "paused"),
    "order_by": ("finished_at", "finished_at desc", "priority", "run_at"),
    "required_feature": ("received", "groups", "dependencies"),
    "group_key": ("g1", "g2"),
    "type_url": ("type.googleapis.com/google.protobuf.Duration", "type.googleapis.com/a.B"),
}
"""For a name that is not here, any short text."""

SHORT = ("a", "bc", "some-text", "v1", "x.y_z", "ü")

ODD_STRINGS = (
    "0 0 31 2 *",
    "",
    " ",
    "-",
    "*",
    "a b",
    "UPPER",
    "x" * 63,
    "x" * 64,
    "x" * 129,
    "x" * 513,
    "x" * 5_000,
    "ü" * 600,
    "😀",
    "a\0b",
    "\u202etxet",
    "\r\n",
    "a{b}",
    "../../etc",
    "${x}",
    "%s%n",
    "[" * 300,
    "[" * 3_000 + "]" * 3_000,
    '{"a":' * 300,
    '"\\ud800"',
    '{"a": "\\udfff\\ud800"}',
    "NaN",
    "1e400",
    "-1E+0400",
    "99999999999999999999.9",
    "9" * 200,
    "9" * 5_000,
    "-1",
    "0",
    "0-0",
    "18446744073709551616-1",
    "WzEsMl0=",
    "0 0 29 2 */7",
    "*/0 * * * *",
    "60 24 32 13 8",
    "* " * 400,
    "1,2,3,4," * 200 + "5 * * * *",
    "Europe/../Berlin",
    "jobwire.reserved",
    "(a+)+$",
)

NUMBERS: dict[str, tuple[float, float]] = {
    "priority": (0, 255),
    "max_attempts": (1, 5),
    "page_size": (0, 30),
    "max_jobs": (1, 5),
    "multiplier": (1, 3),
    "jitter": (0, 1),
    "fraction": (0, 1),
    "credits": (0, 6),
    "credit_bytes": (0, 100_000),
    "offset": (0, 20),
    "max_bytes": (1_000, 20_000),
    "max_per_second": (100, 1_000),
    "event_log_entries": (0, 500),
    "max_output_bytes": (1_000, 1_000_000),
    "max_pending_jobs": (100, 2_000),
    "max_live_bytes": (100_000, 10_000_000),
    "max_ended_jobs": (10, 1_000),
    "max_ended_bytes": (10_000, 1_000_000),
    "server_id": (0, 3),
}
"""The good ones of a name; 0 to 5 for a name that is not here."""

SECONDS: dict[str, tuple[float, float]] = {
    "wait": (0.0, 0.1),
    "delay": (0.0, 2.0),
    "every": (1.0, 60.0),
    "interval": (0.2, 1.0),
    "execution_timeout": (0.2, 5.0),
    "lease_duration": (1.0, 5.0),
    "period": (1.0, 10.0),
    "catch_up_window": (60.0, 3_600.0),
    "initial_backoff": (0.0, 0.5),
    "max_backoff": (0.5, 2.0),
}
"""Of durations; 0 to 10 s for a name that is not here."""

ODD_SECONDS = (0, -1, 1, 86_400, 315_576_000_000, -315_576_000_000, 2**63 - 1, -(2**63))
ODD_NANOS = (0, 1, -1, 999_999_999, -999_999_999, 10**9, 2**31 - 1, -(2**31))
ODD_MOMENTS = (0, -1, 1, 253_402_300_799, 253_402_300_800, -62_135_596_801, 2**63 - 1, -(2**63))
ODD_FLOATS = (
    *(0.0, -0.0, -1.0, 0.5, 1e308, -1e308, 5e-324, 2.0**53, 2.0**53 + 2.0, 2.0**63),
    *(float("nan"), float("inf"), float("-inf")),
)
COUNTS = (16, 17, 33, 65, 256, 257, 513, 1_001)
"""Of entries in an odd list: about at the bounds of the contract."""
HUGE_COUNTS = (10_001, 100_000, 1_000_000)

REQUIRED = (
    *("worker", "worker_id", "instance_id", "job_id", "schedule_id", "operation", "operations"),
    *("spec", "completion", "job", "submit", "requests", "status", "key", "queue", "filter"),
    *("fencing_token", "expression", "every"),
)
"""Fields without which most requests get nowhere."""
SHARES: dict[str, float] = {
    "ClaimJobRequest.job_id": 0.1,
    "ClaimJobRequest.queues": 0.2,
    "ListWorkersRequest.status": 0.2,
    "WorkRequest.status": 0.1,
    "WorkerSpec.labels": 0.2,
    "JobSpec.requirements": 0.1,
    "JobSpec.unique": 0.15,
    "JobFilter.job_ids": 0.15,
    "page_token": 0.25,
    "cursor": 0.4,
    "UniqueKey.period": 0.1,
    "expires_at": 0.1,
    "deadline": 0.1,
    **dict.fromkeys(("created_at", "schema_version"), 0.03),
    # What this version refuses.
    **dict.fromkeys(("group_key", "dependencies", "suspended", "pause_group_for"), 0.03),
    **dict.fromkeys(("required_features", "Released.delay"), 0.03),
}
"""How often a field is set, by its name or with that of its message, where it is not as others."""
NOT_BELOW: dict[str, tuple[str, ...]] = {
    "ScheduleSpec": ("run_at", "delay", "deadline", "expires_at"),
}
"""Fields that are refused wherever they stand below a message."""

WEIGHTS: dict[str, float] = {
    "SubmitJob": 5,
    "SubmitJobs": 3,
    "ClaimJob": 4,
    "CompleteJob": 5,
    "RegisterWorker": 3,
    "Heartbeat": 2,
    "UpdateProgress": 3,
    "RunJob": 1,
    "PauseQueue": 0.3,
    "ResumeQueue": 1.5,
    "PurgeJobs": 0.3,
    "CancelJobs": 0.3,
    "DeregisterWorker": 0.3,
    "DeleteQueue": 0.2,
    "Work": 6,
}
"""How often a method is drawn; 1 for one that is not here."""
FOREIGN_WEIGHT = 0.3
"""Of a method that is not of the contract."""
