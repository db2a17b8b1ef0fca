"""Stubs for other languages, with the generators that are installed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tools import generate_others

SERVICES = ("JobService", "WorkerService", "AdminService", "ScheduleService")

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("language", generate_others.languages())
def test_stubs_are_generated(tmp_path: Path, language: str) -> None:
    beside = str(Path(sys.executable).parent)
    missing = [
        name
        for name in generate_others.plugins_of(language)
        if shutil.which(name) is None and shutil.which(name, path=beside) is None
    ]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    generate_others.generate(language, tmp_path)
    written = "\n".join(
        path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()
    )
    assert "WatchJobsRequest" in written
    # Python's are in a serialized descriptor, where letters may be written as numbers.
    assert language == "python" or all(service in written for service in SERVICES)


@pytest.mark.parametrize("language", ["go", "typescript", "java", "rust", "python"])
def test_every_language_has_its_plugins(language: str) -> None:
    assert generate_others.plugins_of(language)
