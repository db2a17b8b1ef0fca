"""Inputs by chance, by the hour: `python -m tests.fuzz --minutes 30 --seed 7`."""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from tests.fuzz.report import as_json, describe, summary
from tests.fuzz.run import Settings, run

CORPUS = Path(__file__).with_name("corpus")


def main() -> int:
    """Runs; returns 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="for small inputs that fail")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    say = sys.stderr if given.json else sys.stdout
    print(f"seed {given.seed}, {given.minutes:g} minutes", file=say, flush=True)
    settings = Settings(given.seed, given.minutes * 60, corpus=given.corpus)
    result = run(settings, lambda text: print(text, file=say, flush=True))
    if result.failures:
        print(describe(result), file=say)
    print(json.dumps(as_json(result), indent=2) if given.json else summary(result))
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
