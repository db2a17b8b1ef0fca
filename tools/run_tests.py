"""Runs the tests: most of them side by side, then those marked `alone` one by one.

Usage: run_tests.py PROCESSES [ARGUMENTS OF PYTEST ...]
"""

from __future__ import annotations

import subprocess
import sys

NONE_COLLECTED = 5
"""What pytest ends with where no test fits its arguments."""


def main() -> int:
    """Returns 0 if tests ran and all passed."""
    processes, *arguments = sys.argv[1:]
    ended = [
        subprocess.run([sys.executable, "-m", "pytest", *part, *arguments], check=False).returncode
        for part in (
            ["-m", "not alone", f"--numprocesses={processes}", "--dist=worksteal"],
            ["-m", "alone"],
        )
    ]
    if set(ended) == {NONE_COLLECTED}:
        return NONE_COLLECTED
    return next((code for code in ended if code not in (0, NONE_COLLECTED)), 0)


if __name__ == "__main__":
    sys.exit(main())
