"""Sets the clock of a Python process wrong by JOBWIRE_TEST_CLOCK_OFF_S seconds.

With its folder on PYTHONPATH it is imported before everything else.
"""

from __future__ import annotations

import os
import time

_OFF_S = int(os.environ["JOBWIRE_TEST_CLOCK_OFF_S"])
_time, _time_ns = time.time, time.time_ns

time.time = lambda: _time() + _OFF_S
time.time_ns = lambda: _time_ns() + _OFF_S * 1_000_000_000
