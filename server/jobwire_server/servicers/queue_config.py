"""The settings of a queue, between the contract and the model."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from jobwire.v1 import admin_service_pb2, job_pb2
from jobwire_server.domain.model import QueueChanges, QueueSettings, RetryPolicy
from jobwire_server.servicers.checks import DAY_MS, TEN_YEARS_MS, Checker, check_retry

MAX_LOG_ENTRIES = 1_000_000
MAX_NUMBER = 1 << 50
"""Of jobs and of bytes. The store's scripts count in doubles."""
MIN_AGEING_MS = 100
MAX_AGEING_MS = 30 * DAY_MS

_NONE = RetryPolicy()


def check_config(checker: Checker, config: admin_service_pb2.QueueConfig) -> QueueChanges:
    """Return the settings that a message changes; those that it does not set are left out."""
    changes = QueueChanges()
    if config.HasField("event_log_entries"):
        changes["event_log_entries"] = _number(
            checker, "event_log_entries", config.event_log_entries, MAX_LOG_ENTRIES
        )
    if config.HasField("max_output_bytes"):
        changes["max_output_bytes"] = _number(checker, "max_output_bytes", config.max_output_bytes)
    if config.HasField("retry"):
        policy = check_retry(checker, "config.retry", config.retry)
        changes["retry"] = None if policy == _NONE else policy
    if config.HasField("max_pending_jobs"):
        changes["max_pending_jobs"] = _number(checker, "max_pending_jobs", config.max_pending_jobs)
    if config.HasField("max_live_bytes"):
        changes["max_live_bytes"] = _number(checker, "max_live_bytes", config.max_live_bytes)
    if config.HasField("retain_succeeded"):
        changes["retain_succeeded_ms"] = _time(checker, "retain_succeeded", config.retain_succeeded)
    if config.HasField("retain_ended"):
        changes["retain_ended_ms"] = _time(checker, "retain_ended", config.retain_ended)
    if config.HasField("max_ended_jobs"):
        changes["max_ended_jobs"] = _number(checker, "max_ended_jobs", config.max_ended_jobs)
    if config.HasField("max_ended_bytes"):
        changes["max_ended_bytes"] = _number(checker, "max_ended_bytes", config.max_ended_bytes)
    if config.HasField("retain_output"):
        changes["retain_output_ms"] = _time(checker, "retain_output", config.retain_output)
    if config.HasField("retain_event_log"):
        changes["retain_event_log_ms"] = _time(checker, "retain_event_log", config.retain_event_log)
    if config.HasField("priority_ageing"):
        ageing = _time(
            checker, "priority_ageing", config.priority_ageing, MIN_AGEING_MS, MAX_AGEING_MS
        )
        changes["priority_ageing_ms"] = ageing or 0
    return changes


def config_to_wire(settings: QueueSettings) -> admin_service_pb2.QueueConfig:
    """Return settings as they are shown; a time that nobody chose is left unset."""
    config = admin_service_pb2.QueueConfig(
        event_log_entries=settings.event_log_entries,
        max_output_bytes=settings.max_output_bytes,
        max_pending_jobs=settings.max_pending_jobs,
        max_live_bytes=settings.max_live_bytes,
        max_ended_jobs=settings.max_ended_jobs,
        max_ended_bytes=settings.max_ended_bytes,
    )
    _show(config.retain_succeeded, settings.retain_succeeded_ms)
    _show(config.retain_ended, settings.retain_ended_ms)
    _show(config.retain_output, settings.retain_output_ms)
    _show(config.retain_event_log, settings.retain_event_log_ms)
    _show(config.priority_ageing, settings.priority_ageing_ms or None)
    if settings.retry is not None:
        config.retry.CopyFrom(_retry_to_wire(settings.retry))
    return config


def _number(checker: Checker, field: str, value: int, most: int = MAX_NUMBER) -> int:
    return checker.number(f"config.{field}", value, 0, most)


def _time(
    checker: Checker, field: str, value: Duration, least: int = 0, most: int = TEN_YEARS_MS
) -> int | None:
    """Return a time in milliseconds, None for a negative one, which takes the setting away."""
    if value.seconds < 0 or value.nanos < 0:
        return None
    return checker.duration_ms(f"config.{field}", value, least, most)


def _show(field: Duration, ms: int | None) -> None:
    if ms is not None:
        field.FromMilliseconds(ms)
        # Also where it is 0, which is a choice.
        field.SetInParent()


def _retry_to_wire(policy: RetryPolicy) -> job_pb2.RetryPolicy:
    message = job_pb2.RetryPolicy(
        max_attempts=policy.max_attempts,
        multiplier=policy.multiplier,
        jitter=policy.jitter,
    )
    _show(message.initial_backoff, policy.initial_backoff_ms)
    _show(message.max_backoff, policy.max_backoff_ms)
    return message
