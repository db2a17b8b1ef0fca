"""Runs a module under cProfile: `python -m benchmarks.profiled FILE MODULE [ARGUMENTS...]`.

The profile of the main thread is in FILE once the program has ended by itself or by a signal that
it heeds; `python -m pstats FILE` reads it. The program takes about twice its time meanwhile.
"""

from __future__ import annotations

import cProfile
import runpy
import sys


def main() -> None:
    """Runs the module that the command line names as if it had been started itself."""
    _, file, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    profile = cProfile.Profile()
    try:
        profile.runcall(runpy.run_module, module, run_name="__main__", alter_sys=True)
    finally:
        profile.dump_stats(file)


if __name__ == "__main__":
    main()
