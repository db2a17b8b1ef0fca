"""Faults by the hour: `python -m tests.faults --minutes 60 --seed 7 --config all`."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from tests.faults.plan import QUICK, Pace
from tests.faults.report import as_json, describe, summary
from tests.faults.run import Result, Settings, run
from tests.faults.shapes import CONFIGS

MEASURED_SHARE = 0.3
LEAST_S = 20.0
QUIET_S = 25.0
"""What starting, settling and reading take of each configuration's time, about."""


def main() -> int:
    """Runs; returns 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="in all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--config", choices=[*CONFIGS, "all"], default="all")
    parser.add_argument("--short", action="store_true", help="short leases, quick faults")
    parser.add_argument("--folder", type=Path, help="for histories and logs of violations")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    configs = CONFIGS if given.config == "all" else (given.config,)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="jobwire-faults-"))
    each_s = given.minutes * 60 / len(configs)
    results: list[Result] = []
    for at, config in enumerate(configs):
        place = folder / config
        place.mkdir(parents=True, exist_ok=True)
        measured_s = 0.0 if given.short else each_s * MEASURED_SHARE
        settings = Settings(
            config,
            max(LEAST_S, each_s - measured_s - QUIET_S),
            given.seed + at,
            place,
            QUICK if given.short else Pace(),
            short=given.short,
            measured_s=measured_s,
        )
        say = sys.stderr if given.json else sys.stdout
        print(
            f"{config}: {settings.seconds:.0f} s of faults, seed {given.seed + at}; histories and"
            f" logs in {place}",
            file=say,
            flush=True,
        )
        results.append(run(settings))
        if results[-1].violations:
            print(describe(results[-1], place / "violations.txt"), file=say, flush=True)
    print(json.dumps(as_json(results, given.seed), indent=2) if given.json else summary(results))
    return 1 if any(result.violations for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
