"""Makes the blocking client out of the asyncio one.

    python tools/unasync.py            writes client/jobwire/_sync/
    python tools/unasync.py --check    exits 1 and names the files if that would change any

Source: the method of encode/httpcore's unasync.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "client" / "jobwire" / "_async"
OUT = ROOT / "client" / "jobwire" / "_sync"
HEADER = "# Made from jobwire/_async by tools/unasync.py; edit that one.\n"

# In this order; each is a whole word.
RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\ban `async with`", "a `with`"),
        (r"\basync (def|for|with)\b", r"\1"),
        (r"\bawait ", ""),
        (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
        (r"\ba(close|closing|next)\b", r"\1"),
        (r"\bAsync(Iterator|Generator)\b", r"\1"),
        (
            r"\bAsync(Client|(Bulk|Job|Operator|Schedule)Methods|BulkAction|Calls|Channels|JobHandle|JobWatch"
            r"|QueueWatch|BatchError|Producer|Submitter)\b",
            r"\1",
        ),
        (r"\b(Admin|Job|Schedule)ServiceAsyncStub\b", r"\1ServiceStub"),
        (r"\basync_sleep\b", "sync_sleep"),
        (r"\bgrpc\.aio\.", "grpc."),
        (r"\bjobwire\._async\b", "jobwire._sync"),
        (r"\bsafe across tasks\b", "safe across threads"),
    )
]


def unasync(text: str) -> str:
    """Translates one module."""
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return HEADER + text if text.strip() else text


def formatted(text: str, name: str) -> str:
    """Gives shortened lines and reordered imports their form."""
    ruff = Path(sys.executable).with_name("ruff")
    for arguments in (["check", "--quiet", "--fix-only", "--select", "I"], ["format", "--quiet"]):
        text = subprocess.run(
            [ruff, *arguments, "--stdin-filename", str(OUT / name), "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
    return text


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    made = {
        path.name: formatted(unasync(path.read_text()), path.name)
        for path in sorted(SOURCE.glob("*.py"))
    }
    kept = {path.name: path.read_text() for path in OUT.glob("*.py")}
    stale = sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))
    for name in stale:
        if check:
            print(f"client/jobwire/_sync/{name} is stale: run `python tools/unasync.py`")
        elif name in made:
            (OUT / name).write_text(made[name])
        else:
            (OUT / name).unlink()
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
