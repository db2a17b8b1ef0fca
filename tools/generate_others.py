"""Generates the contract's stubs for another language, with the plugins of buf.gen.yaml.

python tools/generate_others.py go [FOLDER]     writes FOLDER/gen/go; unset: this one

Languages are the folders below gen/ in buf.gen.yaml, where comments say how to install their
plugins.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "buf.gen.yaml"
_OUT = re.compile(r"^    out: gen/(\w+)$", re.MULTILINE)


def languages() -> list[str]:
    """Return what buf.gen.yaml has plugins for."""
    return [*dict.fromkeys(_OUT.findall(TEMPLATE.read_text(encoding="utf-8")))]


def template_of(language: str) -> str:
    """Return the part of buf.gen.yaml that is about one language."""
    head, *plugins = re.split(r"^(?=  - (?:local|protoc_builtin):)", _text(), flags=re.MULTILINE)
    return head + "".join(one for one in plugins if f"out: gen/{language}\n" in one)


def plugins_of(language: str) -> list[str]:
    """Return the programs that a language needs."""
    lines = template_of(language).splitlines()
    local = [line.split(": ")[1] for line in lines if line.startswith("  - local: ")]
    paths = [line.split(": ")[1] for line in lines if line.startswith("    protoc_path: ")]
    builtin = any(line.startswith("  - protoc_builtin: ") for line in lines)
    return [*local, *dict.fromkeys(paths or (["protoc"] if builtin else []))]


def generate(language: str, folder: Path) -> None:
    """Write FOLDER/gen/LANGUAGE.

    Raises:
        subprocess.CalledProcessError: A plugin is missing, or failed; buf has said which.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".gen.yaml") as template:
        template.write(template_of(language))
        template.flush()
        buf = str(Path(sys.executable).with_name("buf"))
        command = [buf, "generate", "--template", template.name, "--output", str(folder)]
        subprocess.run(command, cwd=ROOT, env=_environment(), check=True)


def _environment() -> dict[str, str]:
    # buf and Python's protoc are installed beside this interpreter.
    beside = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([beside, os.environ.get("PATH", os.defpath)])}


def _text() -> str:
    # The comments between the plugins would go with the wrong one.
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.lstrip().startswith("#"))


def main() -> int:
    """Return 0 if stubs were written."""
    language, *folder = sys.argv[1:] or [""]
    if language not in languages():
        print(f"usage: generate_others.py {'|'.join(languages())} [FOLDER]", file=sys.stderr)
        return 2
    try:
        generate(language, Path(*folder).resolve())
    except subprocess.CalledProcessError:
        needed = ", ".join(plugins_of(language))
        print(f"{language} needs {needed} on the path: buf.gen.yaml says how", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
