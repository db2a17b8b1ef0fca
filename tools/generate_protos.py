"""Generates the Python stubs of protos/ into client/, or checks that they are fresh.

python tools/generate_protos.py            writes client/jobwire/v1/
python tools/generate_protos.py --check    exits 1 if that would change anything
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
OUT = ROOT / "client"


def generate(out: Path) -> None:
    """Writes messages, stubs and their type stubs below `out`."""
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"-I{well_known}",
        f"--python_out={out}",
        f"--mypy_out=quiet,readable_stubs:{out}",
        f"--grpc_python_out={out}",
        f"--mypy_grpc_out=quiet:{out}",
        *files,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its messages are above")


def stale(fresh: Path) -> list[str]:
    """Names the generated files that differ between `fresh` and the tree."""
    pattern = "*_pb2*.py*"
    made = {path.relative_to(fresh): path for path in fresh.rglob(pattern)}
    kept = {path.relative_to(OUT): path for path in OUT.rglob(pattern) if path.suffix != ".pyc"}
    return sorted(
        str(name)
        for name in made.keys() | kept.keys()
        if name not in made
        or name not in kept
        or made[name].read_bytes() != kept[name].read_bytes()
    )


def main() -> int:
    # protoc finds its plugins by name; they are installed beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if sys.argv[1:] != ["--check"]:
        generate(OUT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        names = stale(Path(folder))
    for name in names:
        print(f"client/{name} is stale: run `make proto`")
    return 1 if names else 0


if __name__ == "__main__":
    raise SystemExit(main())
