"""What a run came to, for people and for programs."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.checks import Violation
from tests.faults.run import Result

MOST_OF_A_RULE = 3
MOST_LINES = 12
WIDE = 160
COLUMNS = ("kill", "stop", "term", "cut", "deaf", "slow", "full", "failover")
REST = ("jobs", "starts", "watches", "refused")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def describe(result: Result, path: Path) -> str:
    """Says which rules did not hold, of each the first few; all of it goes into a file."""
    by_rule: dict[str, list[Violation]] = defaultdict(list)
    for violation in result.violations:
        by_rule[violation.rule].append(violation)
    everything: list[str] = []
    shown: list[str] = []
    for rule, violations in by_rule.items():
        head = f"BROKEN {len(violations)} times: {rule} ({violations[0].page})"
        everything.append(head)
        shown.append(head)
        for at, violation in enumerate(violations):
            lines = [f"  {violation.text}", *(f"    {json.dumps(e)}" for e in violation.evidence)]
            everything += lines
            if at < MOST_OF_A_RULE:
                shown += [line[:WIDE] for line in lines[:MOST_LINES]]
    path.write_text("\n".join(everything) + "\n")
    again = f"--seed {result.settings.seed} --config {result.settings.config}"
    return "\n".join([*shown, f"all of it: {path}; again with {again}"])


def summary(results: Sequence[Result]) -> str:
    """Tables of what was done and how long it took to go on."""
    rows = [["", *COLUMNS, *REST, "violations"]]
    total: Counter[str] = Counter()
    for result in results:
        counts = Counter(result.counts)
        total += counts
        rows.append(_row(result.settings.config, counts, len(result.violations)))
    rows.append(_row("all", total, sum(len(result.violations) for result in results)))
    times = [["seconds after kill -9", "times", "p50", "p99", "most"]]
    for name, values in sorted(_times(results).items()):
        figures = (percentile(values, 0.5), percentile(values, 0.99), max(values))
        times.append([name, str(len(values)), *(f"{figure:.2f}" for figure in figures)])
    tables = [rows, times] if len(times) > 1 else [rows]
    return "\n\n".join(_table(table) for table in tables)


def as_json(results: Sequence[Result], seed: int) -> dict[str, Any]:
    """The same for programs."""
    return {
        "seed": seed,
        "runs": [
            {
                "config": result.settings.config,
                "seed": result.settings.seed,
                "seconds": round(result.seconds, 1),
                "counts": result.counts,
                "skipped": result.skipped,
                "violations": [
                    {"rule": each.rule, "page": each.page, "text": each.text, "about": each.about}
                    for each in result.violations
                ],
            }
            for result in results
        ],
        "times_s": {
            name: {
                "count": len(values),
                "p50": round(percentile(values, 0.5), 3),
                "p99": round(percentile(values, 0.99), 3),
                "max": round(max(values), 3),
            }
            for name, values in sorted(_times(results).items())
        },
    }


def _times(results: Sequence[Result]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for name, values in result.times.items():
            found[name] += values
    return {name: values for name, values in found.items() if values}


def _row(name: str, counts: Counter[str], violations: int) -> list[str]:
    return [name, *(str(counts[column]) for column in (*COLUMNS, *REST)), str(violations)]


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
