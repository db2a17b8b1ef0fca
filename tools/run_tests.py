"""Run the tests: most of them side by side, then those marked `alone` one by one.

Usage: run_tests.py [--quick | --smoke] PROCESSES [ARGUMENTS OF PYTEST ...]

With --quick it leaves out what starts processes, and what is marked `alone`. With --smoke it runs
what is marked `smoke`, and nothing else does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

NONE_COLLECTED = 5
"""The exit code of pytest where no test fits its arguments."""


def main() -> int:
    """Return 0 if tests ran and all passed."""
    group = sys.argv[1] if sys.argv[1].startswith("--") else ""
    processes, *arguments = sys.argv[2 if group else 1 :]
    side_by_side = [f"--numprocesses={processes}", "--dist=worksteal"]
    if group == "--quick":
        parts = [["-m", "not alone and not processes and not smoke", *side_by_side]]
    elif group == "--smoke":
        parts = [["-m", "smoke", *side_by_side, *_where_they_are("smoke", arguments)]]
    else:
        parts = [
            ["-m", "not alone and not smoke", *side_by_side],
            ["-m", "alone", *_where_they_are("alone", arguments)],
        ]
    codes = [
        subprocess.run(
            [sys.executable, "-m", "pytest", *part, *arguments], env=_environment(), check=False
        ).returncode
        for part in parts
    ]
    if set(codes) == {NONE_COLLECTED}:
        return NONE_COLLECTED
    return next((code for code in codes if code not in (0, NONE_COLLECTED)), 0)


def _where_they_are(mark: str, arguments: list[str]) -> list[str]:
    """Return the files with tests so marked, unless the arguments name files themselves."""
    if any(Path(argument.partition("::")[0]).exists() for argument in arguments):
        return []
    files = sorted(Path("tests").rglob("test_*.py"))
    return [str(file) for file in files if f"mark.{mark}" in file.read_text(encoding="utf-8")]


def _environment() -> dict[str, str]:
    # Hundreds of processes import the same modules. Where a container keeps Python from writing
    # down what it compiled, each of them spends half of its start on compiling them anew.
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


if __name__ == "__main__":
    sys.exit(main())
