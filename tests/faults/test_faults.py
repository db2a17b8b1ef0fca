"""A minute of faults with a fixed seed; `make faults` does it by the hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.plan import QUICK
from tests.faults.report import describe
from tests.faults.run import Settings, run

SEED = 11


@pytest.mark.smoke
@pytest.mark.timeout(300)
def test_several_dozen_faults_break_no_rule(tmp_path: Path) -> None:
    # With the product's own times: with shorter ones a busy machine is a fault by itself.
    settings = Settings(config="three", seconds=25, seed=SEED, folder=tmp_path, pace=QUICK)
    result = run(settings)
    assert not result.violations, describe(result, tmp_path / "violations.txt")
    # It was no quiet run.
    assert result.counts["kill"] + result.counts["stop"] >= 10
    assert result.counts["jobs"] >= 20
