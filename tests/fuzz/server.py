"""A server that writes where it is whenever its loop is late: `python -m tests.fuzz.server`."""

from __future__ import annotations

import faulthandler
import sys

from jobwire_server.host.command import serve
from jobwire_server.telemetry import loop_delay

_arm = loop_delay.LoopDelay._arm


def _arm_both(delay: loop_delay.LoopDelay) -> None:
    late_s = loop_delay.PERIOD_S + loop_delay.STALL_S
    faulthandler.dump_traceback_later(late_s, file=sys.stderr)
    _arm(delay)


if __name__ == "__main__":
    loop_delay.LoopDelay._arm = _arm_both  # type: ignore[method-assign]
    serve()
