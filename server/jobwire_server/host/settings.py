"""Every setting of the server in one validated object; load_settings.py fills it from outside.

A flag beats an environment variable (`JOBWIRE_` and the name), which beats the TOML file,
which beats the default. All names are the field names here, in a flag with hyphens.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field
from pydantic import model_validator as check_fields
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    SettingsConfigDict,
)

from jobwire_server.domain.options import BrokerOptions, Limits, RetryDefaults
from jobwire_server.domain.units import (
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    printable,
)
from jobwire_server.host.secret_files import open_to_all, read_secret

PREFIX = "JOBWIRE_"

_BROKER, _RETRY, _LIMITS = BrokerOptions(), RetryDefaults(), Limits()


def _address(value: str) -> str:
    host, port = parse_address(value)
    return f"{host}:{port}"


def _address_or_off(value: str) -> str:
    return _address(value) if value else ""


def _directory(value: object) -> object:
    if value == "":
        raise ValueError("it is empty: name a directory, or leave it unset")
    return value


def _ms(value: timedelta) -> int:
    return round(value / timedelta(milliseconds=1))


def _default_data_dir() -> Path:
    """Apart from the current directory, so that a start elsewhere finds the same jobs."""
    path = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "jobwire"
    try:
        return path.expanduser()
    except RuntimeError:
        return path  # this user has no home: it matters only if the directory is used


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


def _between(low: str, high: str, default: float, group: str, description: str) -> Any:
    """A duration out of a range; default in milliseconds."""
    return Field(
        default=timedelta(milliseconds=default),
        ge=parse_duration(low),
        le=parse_duration(high),
        description=f"{description} {low} to {high}.",
        json_schema_extra={"group": group},
    )


def _setting(default: Any, group: str, description: str, **rules: Any) -> Any:
    return Field(
        default=default, description=description, json_schema_extra={"group": group}, **rules
    )


SERVING, STORE, JOBS, RETRIES, REQUESTS, LOGS = (
    "Serving",
    "Store",
    "Jobs and workers",
    "Retry defaults",
    "Limits",
    "Logs",
)


class Settings(BaseSettings):
    """The settings of `jobwire serve`. Read them with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    listen: Annotated[str, AfterValidator(_address)] = _setting(
        "127.0.0.1:50051", SERVING, "HOST:PORT of the gRPC server. Port 0: a free one."
    )
    http_listen: Annotated[str, AfterValidator(_address_or_off)] = _setting(
        "127.0.0.1:9464", SERVING, "HOST:PORT of /metrics, /healthz and /readyz. Empty: off."
    )
    processes: int = _setting(
        1,
        SERVING,
        "How many processes serve the port, on one store; about one for each core is useful."
        " 1 to 64.",
        ge=1,
        le=64,
    )
    tls_cert: str = _setting("", SERVING, "PEM file with the server's certificate chain.")
    tls_key: str = _setting("", SERVING, "PEM file with the key of the certificate.")
    tls_client_ca: str = _setting(
        "",
        SERVING,
        "PEM file with the authorities of clients; if set, every client needs a"
        " certificate of theirs.",
    )
    shutdown_grace: Duration = _between(
        "0s", "1h", 30_000, SERVING, "How long calls in hand may take after SIGTERM."
    )

    redis_url: str = _setting(
        "",
        STORE,
        "The Redis or Valkey to use: redis://, rediss://, unix://, redis+sentinel:// or"
        " redis+cluster://. Empty: the bundled Valkey.",
    )
    redis_url_file: str = _setting(
        "",
        STORE,
        "A file with redis_url in it, for a password that is not to stand in the list of processes"
        " or in the environment.",
    )
    data_dir: Annotated[Path, BeforeValidator(_directory)] = Field(
        default_factory=_default_data_dir,
        description="Where the bundled Valkey keeps its data.",
        json_schema_extra={"group": STORE, "shown": "~/.local/share/jobwire"},
    )
    durability: Literal["everysec", "always"] = _setting(
        "everysec",
        STORE,
        "When the bundled Valkey writes to disk: everysec (a failing machine may"
        " lose a second) or always (before each answer).",
    )
    allow_volatile_store: bool = _setting(
        False, STORE, "Accept a store that keeps nothing on disk."
    )
    store_wait: Duration = _between(
        "0s", "10m", 10_000, STORE, "How long a start waits for a store that can't be reached."
    )

    wait_replicas: int = _setting(
        _BROKER.wait_replicas,
        STORE,
        "How many replicas of the store must have a write before it is answered; each primary of a"
        " cluster needs so many. 0: none is waited for. 0 to 10.",
        ge=0,
        le=10,
    )
    wait_timeout: Duration = _between(
        "10ms",
        "2s",
        _BROKER.wait_timeout_ms,
        STORE,
        "How long the replicas may take; then the call is UNAVAILABLE, to be repeated.",
    )

    lease: Duration = _between(
        "1s", "1h", _BROKER.lease_ms, JOBS, "The lease of a worker that asks for none of its own."
    )
    heartbeat_interval: Duration = _between(
        "100ms",
        "5m",
        _BROKER.heartbeat_interval_ms,
        JOBS,
        "How often servers say something on workers' streams. Workers that hear nothing for two of"
        " them attach elsewhere.",
    )
    worker_timeout: Duration = _between(
        "200ms",
        "1h",
        _BROKER.worker_timeout_ms,
        JOBS,
        "A worker silent for so long is lost. At least two heartbeat intervals; leave time to"
        " attach elsewhere.",
    )
    claim_timeout: Duration = _between(
        "100ms",
        "10m",
        _BROKER.claim_timeout_ms,
        JOBS,
        "How long an assignment on a stream may wait for its acknowledgement.",
    )
    reconnect_window: Duration = _between(
        "0s",
        "10m",
        _BROKER.reconnect_window_ms,
        JOBS,
        "How long a worker whose stream broke may take to attach again; its handlers are stopped"
        " after as long without a server.",
    )
    max_stream_age: Duration = _between(
        "1s",
        "30d",
        _BROKER.max_stream_age_ms,
        JOBS,
        "After about this long a stream is drained, so that load spreads over servers.",
    )
    drain_deadline: Duration = _between(
        "1s",
        "1h",
        _BROKER.drain_deadline_ms,
        JOBS,
        "How long a stream that is drained for its age is still held.",
    )
    cancel_grace: Duration = _between(
        "0s",
        "1d",
        _BROKER.cancel_grace_ms,
        JOBS,
        "How long a running job's worker may take to confirm a cancellation.",
    )
    max_crashes: int = _setting(
        _BROKER.max_crashes, JOBS, "The crash that ends a job. 1 to 1000.", ge=1, le=1_000
    )
    max_interruptions: int = _setting(
        _BROKER.max_interruptions,
        JOBS,
        "The interruption that ends a job. 1 to 1000000.",
        ge=1,
        le=1_000_000,
    )
    retain_succeeded: Duration = _between(
        "0s", "3650d", _BROKER.retain_succeeded_ms, JOBS, "How long SUCCEEDED jobs are kept."
    )
    retain_ended: Duration = _between(
        "0s",
        "3650d",
        _BROKER.retain_ended_ms,
        JOBS,
        "How long FAILED, CANCELLED and EXPIRED jobs are kept.",
    )
    retain_lost_workers: Duration = _between(
        "0s", "30d", _BROKER.retain_lost_workers_ms, JOBS, "How long lost workers stay listed."
    )
    tick: Duration = _between(
        "10ms",
        "1m",
        _BROKER.tick_ms,
        JOBS,
        "The longest time between two looks of the maintenance at a queue in use.",
    )
    bookmark: Duration = _between(
        "1s",
        "10m",
        _BROKER.bookmark_ms,
        JOBS,
        "How long a watch stream may be quiet before it carries a bookmark.",
    )
    max_linger: Duration = _between(
        "0ms",
        "100ms",
        _BROKER.max_linger_ms,
        JOBS,
        "The longest that a call to the store is held while more requests for it keep coming.",
    )

    retry_max_attempts: int = _setting(
        _RETRY.max_attempts,
        RETRIES,
        "Failures that end a job, the first attempt included. 1 to 1000.",
        ge=1,
        le=1_000,
    )
    retry_initial_backoff: Duration = _between(
        "0s", "24h", _RETRY.initial_backoff_ms, RETRIES, "The wait before the second attempt."
    )
    retry_max_backoff: Duration = _between(
        "0s", "30d", _RETRY.max_backoff_ms, RETRIES, "The longest wait between attempts."
    )
    retry_multiplier: float = _setting(
        _RETRY.multiplier, RETRIES, "The factor from each wait to the next. 1 to 10.", ge=1, le=10
    )
    retry_jitter: float = _setting(
        _RETRY.jitter, RETRIES, "The random share of each wait. 0 to 1.", ge=0, le=1
    )

    max_payload: ByteSize = _setting(
        ByteSize(_LIMITS.max_payload_bytes),
        REQUESTS,
        "The largest payload of a job. 1KiB to 512MiB.",
        ge=1 << 10,
        le=512 << 20,
    )
    max_result: ByteSize = _setting(
        ByteSize(_LIMITS.max_result_bytes),
        REQUESTS,
        "The largest result of a job. 1KiB to 512MiB.",
        ge=1 << 10,
        le=512 << 20,
    )
    max_output: ByteSize = _setting(
        ByteSize(_LIMITS.max_output_bytes),
        REQUESTS,
        "The most output that one job keeps. 1KiB to 1GiB.",
        ge=1 << 10,
        le=1 << 30,
    )
    max_queue_output: ByteSize = _setting(
        ByteSize(_LIMITS.max_queue_output_bytes),
        REQUESTS,
        "The most output that the jobs of one queue keep together. 1KiB and more.",
        ge=1 << 10,
    )
    max_batch_jobs: int = _setting(
        _LIMITS.max_batch_jobs,
        REQUESTS,
        "The longest batch and the most jobs of one claim. 1 to 1000.",
        ge=1,
        le=1_000,
    )
    max_queues: int = _setting(
        _LIMITS.max_queues,
        REQUESTS,
        "The most queues that may be created. 1 to 1000000.",
        ge=1,
        le=1_000_000,
    )
    max_message: ByteSize = _setting(
        ByteSize(_LIMITS.max_message_bytes),
        REQUESTS,
        "The largest message on the wire. 64KiB to 1GiB.",
        ge=64 << 10,
        le=1 << 30,
    )
    max_queued_requests: int = _setting(
        _LIMITS.max_queued_requests,
        REQUESTS,
        "Jobs and reports that may wait for the store;"
        " beyond it calls get SERVER_BUSY. 1 to 10000000.",
        ge=1,
        le=10_000_000,
    )
    max_queued_bytes: ByteSize = _setting(
        ByteSize(_LIMITS.max_queued_bytes),
        REQUESTS,
        "The bytes that may wait for the store; beyond it calls get SERVER_BUSY. At least"
        " max_message.",
        ge=64 << 10,
    )

    log_format: Literal["auto", "console", "json"] = _setting(
        "auto", LOGS, "auto: console on a terminal, json otherwise."
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", LOGS, "The least level that is written."
    )
    log_requests: Literal["all", "errors"] = _setting(
        "errors", LOGS, "Which calls are written: all, or those that fail or are slow."
    )

    @check_fields(mode="before")
    @classmethod
    def _read_secrets(cls, given: dict[str, Any]) -> dict[str, Any]:
        file = given.get("redis_url_file")
        if not file or not isinstance(file, str | Path):
            return given
        if given.get("redis_url"):
            _complain("redis_url_file", "redis_url is set, too: set one of both")
        try:
            return {**given, "redis_url": read_secret(Path(file))}
        except ValueError as error:
            _complain("redis_url_file", str(error))

    @check_fields(mode="after")
    def _check_together(self) -> Self:
        if self.worker_timeout < 2 * self.heartbeat_interval:
            _complain(
                "worker_timeout",
                f"{format_duration(self.worker_timeout)} is shorter than two heartbeat_interval of"
                f" {format_duration(self.heartbeat_interval)}, so that one late heartbeat would"
                " lose a worker: raise it or shorten the interval",
            )
        for name in ("data_dir", "tls_cert", "tls_key", "tls_client_ca"):
            if "\0" in str(getattr(self, name)):
                _complain(name, "no path has a NUL in it: write it without")
        if not self.redis_url:
            _check_home(self.data_dir)
        if self.wait_replicas and not self.redis_url:
            _complain(
                "wait_replicas",
                "the bundled Valkey has no replicas to wait for: name a store with redis_url, or"
                " set it to 0",
            )
        if self.retry_initial_backoff > self.retry_max_backoff:
            _complain(
                "retry_initial_backoff",
                f"{format_duration(self.retry_initial_backoff)} is longer than retry_max_backoff of"
                f" {format_duration(self.retry_max_backoff)}: lower it or raise the other",
            )
        for name in ("max_payload", "max_result"):
            if getattr(self, name) >= self.max_message:
                _complain(
                    name,
                    f"{format_size(getattr(self, name))} does not fit into a max_message of"
                    f" {format_size(self.max_message)}: lower it or raise the other",
                )
        if self.max_queued_bytes < self.max_message:
            _complain(
                "max_queued_bytes",
                f"{format_size(self.max_queued_bytes)} is less than a max_message of"
                f" {format_size(self.max_message)}, which would never be taken: raise it or lower"
                " the other",
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            missing, other = ("tls_key", "tls_cert") if self.tls_cert else ("tls_cert", "tls_key")
            _complain(missing, f"is needed, because {other} is set: set both or neither")
        if self.tls_client_ca and not self.tls_cert:
            _complain("tls_client_ca", "has no effect without tls_cert and tls_key: set them too")
        return self

    def open_secrets(self) -> list[str]:
        """Return what is wrong with the rights of the files that hold secrets."""
        files = (self.redis_url_file, self.tls_key)
        return [problem for file in files if file and (problem := open_to_all(Path(file)))]

    def broker_options(self) -> BrokerOptions:
        """The broker's part of the settings."""
        return BrokerOptions(
            lease_ms=_ms(self.lease),
            heartbeat_interval_ms=_ms(self.heartbeat_interval),
            worker_timeout_ms=_ms(self.worker_timeout),
            claim_timeout_ms=_ms(self.claim_timeout),
            reconnect_window_ms=_ms(self.reconnect_window),
            max_stream_age_ms=_ms(self.max_stream_age),
            drain_deadline_ms=_ms(self.drain_deadline),
            cancel_grace_ms=_ms(self.cancel_grace),
            max_crashes=self.max_crashes,
            max_interruptions=self.max_interruptions,
            retain_succeeded_ms=_ms(self.retain_succeeded),
            retain_ended_ms=_ms(self.retain_ended),
            retain_lost_workers_ms=_ms(self.retain_lost_workers),
            tick_ms=_ms(self.tick),
            bookmark_ms=_ms(self.bookmark),
            max_linger_ms=self.max_linger / timedelta(milliseconds=1),
            wait_replicas=self.wait_replicas,
            wait_timeout_ms=_ms(self.wait_timeout),
            retry=RetryDefaults(
                max_attempts=self.retry_max_attempts,
                initial_backoff_ms=_ms(self.retry_initial_backoff),
                max_backoff_ms=_ms(self.retry_max_backoff),
                multiplier=self.retry_multiplier,
                jitter=self.retry_jitter,
            ),
            limits=Limits(
                max_payload_bytes=int(self.max_payload),
                max_result_bytes=int(self.max_result),
                max_output_bytes=int(self.max_output),
                max_queue_output_bytes=int(self.max_queue_output),
                max_batch_jobs=self.max_batch_jobs,
                max_queues=self.max_queues,
                max_message_bytes=int(self.max_message),
                max_queued_requests=self.max_queued_requests,
                max_queued_bytes=int(self.max_queued_bytes),
            ),
        )


def _complain(name: str, problem: str) -> NoReturn:
    raise PydanticCustomError("together", "{problem}", {"setting": name, "problem": problem})


def _check_home(data_dir: Path) -> None:
    try:
        data_dir.expanduser()
    except RuntimeError:
        _complain(
            "data_dir",
            f"{printable(str(data_dir))} leads nowhere, because that user has no home directory"
            f" (this is user {os.geteuid()}): name a directory with --data-dir or {PREFIX}DATA_DIR,"
            f" or a store with --redis-url or {PREFIX}REDIS_URL",
        )
