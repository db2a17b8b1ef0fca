"""The blocking client is what the asyncio one makes it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "tools" / "unasync.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_blocking_client_is_fresh() -> None:
    done = check(ROOT)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tool and its subject, to be spoilt."""
    for part in ("tools/unasync.py", "pyproject.toml"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    for part in ("_async", "_sync"):
        shutil.copytree(
            ROOT / "client" / "jobwire" / part,
            tmp_path / "client" / "jobwire" / part,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return tmp_path


def test_a_change_on_one_side_is_found_and_named(copy: Path) -> None:
    source = copy / "client" / "jobwire" / "_async" / "handle.py"
    source.write_text(source.read_text().replace('"""A job by its id.', '"""A job by its name.'))
    done = check(copy)
    assert done.returncode == 1
    assert done.stdout.startswith("client/jobwire/_sync/handle.py is stale")


def test_a_left_over_module_is_found_and_removed(copy: Path) -> None:
    left_over = copy / "client" / "jobwire" / "_sync" / "gone.py"
    left_over.write_text("")
    assert check(copy).returncode == 1
    subprocess.run([sys.executable, str(copy / "tools" / "unasync.py")], check=True)
    assert not left_over.exists()
    assert check(copy).returncode == 0
