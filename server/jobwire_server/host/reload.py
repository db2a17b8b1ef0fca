"""Settings that are read again while the server runs."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from structlog.typing import FilteringBoundLogger

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.host.settings import Settings
from jobwire_server.telemetry.logs import LogFormat, configure_logs

AT_ONCE = ("log_level",)
"""What is changed by a server that runs. Certificates are, too: they are files, not settings."""

log: FilteringBoundLogger = structlog.get_logger("jobwire.server")


def read_again(running: Settings, load: Callable[[], Settings], log_format: LogFormat) -> str:
    """Read the settings again, and let those take effect that can; never fails.

    Args:
        running: What the server was started with.
        load: Reads them.
        log_format: Stays as it is.

    Returns:
        The level of the logs from now on; "" if it stays, because something is wrong.
    """
    try:
        found = load()
    except ConfigurationError as error:
        log.error("the settings can't be used, the former stay in force", error=error.message)
        return ""
    configure_logs(log_format, found.log_level)
    waiting = [
        name
        for name in Settings.model_fields
        if name not in AT_ONCE and getattr(found, name) != getattr(running, name)
    ]
    if waiting:
        log.warning("settings have changed that take effect at the next start", settings=waiting)
    log.warning("settings read again", log_level=found.log_level)
    return found.log_level
