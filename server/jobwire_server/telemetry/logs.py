"""Logs: one line for each event, readable on a terminal and JSON otherwise, on stderr."""

from __future__ import annotations

import functools
import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from jobwire_server.telemetry.current_call import current_call
from jobwire_server.telemetry.log_bounds import (
    MAX_FRAMES,
    Rate,
    short_tracebacks,
    shorten,
    write_traceback,
)
from jobwire_server.telemetry.standard_streams import lenient

_GRPC = "grpc._cython.cygrpc"
_LEFT = "ExecuteBatchError"
"""What gRPC fails with that can't send; its class is not public."""

LogFormat = Literal["auto", "console", "json"]


# Without the variables of the frames, which hold what callers sent.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(
        show_locals=False, use_rich=False, max_frames=MAX_FRAMES
    )
)


def configure_logs(
    format: LogFormat = "auto",  # noqa: A002 - the setting's name
    level: str = "info",
    stream: TextIO | None = None,
    *,
    process: int | None = None,
) -> bool:
    """Send the logs of the server and of its libraries to one stream, in one form.

    Args:
        format: ``auto`` is ``console`` if the stream is a terminal and ``json`` if not.
        level: The least level that is written: debug, info, warning or error.
        stream: Unset: stderr.
        process: Stands in every line of a server that is one process of several.

    Returns:
        True if the lines are for people.
    """
    # A server does not end because nobody can read what it says.
    stream = lenient(stream or sys.stderr)
    for_people = format == "console" or (format == "auto" and stream.isatty())
    threshold = logging.getLevelNamesMapping()[level.upper()]
    rate = Rate()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        *([functools.partial(_add_process, process)] if process is not None else []),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=write_traceback)]
        if for_people
        else [_TRACEBACKS, short_tracebacks, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[rate.processor, *shared, shorten, *rendering],
        # A line below the level costs one call of an empty function.
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(), _add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                shorten,
                *rendering,
            ],
        )
    )
    handler.addFilter(rate.filter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # What libraries say below a warning is of use only to whoever debugs them.
    root.setLevel(threshold if threshold == logging.DEBUG else max(threshold, logging.WARNING))
    logging.getLogger(_GRPC).addFilter(_is_news)
    return for_people


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether a line of gRPC's is of use: not the traceback of each answer whose caller had
    left, which callers could have written at any rate.
    """
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != _LEFT


def _add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    call = current_call()
    if call is not None:
        event.setdefault("request_id", call.request_id)
    return event


def _add_process(process: int, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event.setdefault("process", process)
    return event


def _add_logger_name(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if record is not None:
        event["logger"] = record.name
    return event
