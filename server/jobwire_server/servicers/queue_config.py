"""The settings of a queue, between the contract and the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from jobwire.v1 import admin_service_pb2, job_pb2
from jobwire_server.domain.model import (
    NO_SETTINGS,
    QueueChanges,
    QueueSettings,
    RetryChanges,
    RetryPolicy,
)
from jobwire_server.servicers.checks import DAY_MS, TEN_YEARS_MS, Checker, check_retry

MAX_LOG_ENTRIES = 1_000_000
MAX_NUMBER = 1 << 50
"""Of jobs and of bytes. The store's scripts count in doubles."""
MAX_PRIORITY = 255
MIN_AGEING_MS = 100
MAX_AGEING_MS = 30 * DAY_MS
MAX_PATHS = 32
"""Of an update mask."""

_NUMBERS = {
    "event_log_entries": MAX_LOG_ENTRIES,
    "max_output_bytes": MAX_NUMBER,
    "max_pending_jobs": MAX_NUMBER,
    "max_live_bytes": MAX_NUMBER,
    "max_ended_jobs": MAX_NUMBER,
    "max_ended_bytes": MAX_NUMBER,
    "default_priority": MAX_PRIORITY,
}
_TIMES = {
    "retain_succeeded": (0, TEN_YEARS_MS),
    "retain_ended": (0, TEN_YEARS_MS),
    "retain_output": (0, TEN_YEARS_MS),
    "retain_event_log": (0, TEN_YEARS_MS),
    "priority_ageing": (MIN_AGEING_MS, MAX_AGEING_MS),
}
_RETRY = {
    "max_attempts": "max_attempts",
    "initial_backoff": "initial_backoff_ms",
    "max_backoff": "max_backoff_ms",
    "multiplier": "multiplier",
    "jitter": "jitter",
}
"""The fields of a retry policy, and their names in the model."""
_SETTINGS = (*_NUMBERS, *_TIMES, "retry")
_PARTS = tuple(f"retry.{name}" for name in _RETRY)
_NONE = RetryPolicy()


def check_config(
    checker: Checker, config: admin_service_pb2.QueueConfig, mask: FieldMask
) -> tuple[QueueChanges, RetryChanges]:
    """Return the settings that a request changes, and the fields of its retry settings that it
    changes alone.

    Args:
        checker: Takes the violations.
        config: The new values; what is unset there goes back to its default.
        mask: What is changed; without paths it is what `config` sets.
    """
    named = _named(checker, mask) if mask.paths else _set_in(config)
    changes: dict[str, Any] = {}
    for name in _SETTINGS:
        if name in named:
            key = name if name in _NUMBERS or name == "retry" else f"{name}_ms"
            changes[key] = (
                _value(checker, config, name)
                if config.HasField(name)  # type: ignore[arg-type]
                else getattr(NO_SETTINGS, key)
            )
    retry = RetryChanges()
    if "retry" not in named and (parts := [name for name in _RETRY if f"retry.{name}" in named]):
        retry = _retry_parts(checker, config.retry, parts)
    return cast(QueueChanges, changes), retry


def _named(checker: Checker, mask: FieldMask) -> set[str]:
    """Return the settings that a mask names."""
    if len(mask.paths) > MAX_PATHS:
        checker.add("update_mask", f"may name at most {MAX_PATHS}, not {len(mask.paths)}")
        return set()
    named = set(mask.paths)
    for at, path in enumerate(mask.paths):
        if path not in _SETTINGS and path not in _PARTS and path != "*":
            checker.add(
                f"update_mask.paths[{at}]",
                f"must be a setting of a queue, not {path[:80]!r}: {', '.join(sorted(_SETTINGS))},"
                f" one of {', '.join(_PARTS)}, or * for all",
            )
    return named | set(_SETTINGS) if "*" in named else named


def _set_in(config: admin_service_pb2.QueueConfig) -> set[str]:
    """Return the settings that a message sets."""
    named = {field.name for field, _ in config.ListFields()} - {"retry"}
    return named | {f"retry.{field.name}" for field, _ in config.retry.ListFields()}


def _value(checker: Checker, config: admin_service_pb2.QueueConfig, name: str) -> Any:
    field, value = f"config.{name}", getattr(config, name)
    if name == "retry":
        policy = check_retry(checker, field, value)
        return None if policy == _NONE else policy
    if name in _NUMBERS:
        return checker.number(field, value, 0, _NUMBERS[name])
    if value.seconds < 0 or value.nanos < 0:
        checker.add(
            field,
            "must not be negative; a setting that update_mask names and config leaves unset goes"
            " back to its default",
        )
        return 0
    return checker.duration_ms(field, value, *_TIMES[name])


def _retry_parts(
    checker: Checker, message: job_pb2.RetryPolicy, parts: Sequence[str]
) -> RetryChanges:
    named = job_pb2.RetryPolicy()
    FieldMask(paths=parts).MergeMessage(message, named)
    policy = check_retry(checker, "config.retry", named)
    return cast(RetryChanges, {_RETRY[part]: getattr(policy, _RETRY[part]) for part in parts})


def config_to_wire(settings: QueueSettings) -> admin_service_pb2.QueueConfig:
    """Return settings as they are shown; a time that nobody chose is left unset."""
    config = admin_service_pb2.QueueConfig(
        event_log_entries=settings.event_log_entries,
        max_output_bytes=settings.max_output_bytes,
        max_pending_jobs=settings.max_pending_jobs,
        max_live_bytes=settings.max_live_bytes,
        max_ended_jobs=settings.max_ended_jobs,
        max_ended_bytes=settings.max_ended_bytes,
        default_priority=settings.default_priority,
    )
    _show(config.retain_succeeded, settings.retain_succeeded_ms)
    _show(config.retain_ended, settings.retain_ended_ms)
    _show(config.retain_output, settings.retain_output_ms)
    _show(config.retain_event_log, settings.retain_event_log_ms)
    _show(config.priority_ageing, settings.priority_ageing_ms or None)
    if settings.retry is not None:
        config.retry.CopyFrom(_retry_to_wire(settings.retry))
    return config


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
