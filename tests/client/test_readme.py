"""The programs of the README do what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.cli.support import worker

ROOT = Path(__file__).parents[2]


def programs(section: str) -> list[str]:
    """The Python programs of a section, in their order."""
    text = (ROOT / "README.md").read_text()
    part = re.split(rf"^## {section}$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", part, re.DOTALL)


def test_a_failed_import_goes_on_from_its_checkpoint(broker_address: str, tmp_path: Path) -> None:
    handler, producer = programs("When things fail")
    (tmp_path / "ledger.py").write_text(handler)
    (tmp_path / "produce.py").write_text(
        producer.replace("Client()", f"Client({broker_address!r})")
    )
    with worker(broker_address, "ledger", tmp_path):
        done = subprocess.run(
            [sys.executable, "produce.py"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
    assert done.stdout == "{'rows': 500, 'attempt': 2}\n"
