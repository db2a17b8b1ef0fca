"""The Lua scripts, as they are sent to the store.

A script is a file of lua/<module>/, where <module> is the module beside this one that runs it. The
files of lua/include/ that its `--include` line lists follow that line; the names in the files of
lua/constants/ that its `--constants` line lists are replaced by their values. As locals they would
cost every call, which runs the whole file and hands each of its functions what that uses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files

from jobwire_server.store.connection.replicas import UNWAITED


@dataclass(frozen=True, slots=True)
class Script:
    """A script ready to run."""

    name: str
    source: str
    digest: str
    reads: bool
    """It writes nothing."""
    waits: bool
    """Replicas must have what it wrote before anybody gets an answer, if they are waited for.
    """
    timed: bool
    """It reads the clock: its first argument is the shift of the clock, ms."""


_LUA = files(__package__) / "lua"
_PARTS = ("constants", "include")
_CONSTANT = re.compile(r"\b[A-Z][A-Z_]+\b")


@cache
def modules() -> dict[str, str]:
    """Return the module that runs each script, by the script's name."""
    return {
        entry.name.removesuffix(".lua"): folder.name
        for folder in _LUA.iterdir()
        if folder.is_dir() and folder.name not in _PARTS
        for entry in folder.iterdir()
        if entry.name.endswith(".lua")
    }


def names() -> list[str]:
    """Return the names of all scripts, sorted."""
    return sorted(modules())


def written(name: str) -> str:
    """Return a script as it is written."""
    return (_LUA / modules()[name] / f"{name}.lua").read_text("utf-8")


@cache
def constants(name: str) -> dict[str, str]:
    """Return the constants of lua/constants/<name>.lua with their values, as Lua spells them."""
    source = (_LUA / "constants" / f"{name}.lua").read_text("utf-8")
    declared = re.findall(r"^local (.+) = (.+)$", source, re.MULTILINE)
    pairs = [(left.split(", "), right.split(", ")) for left, right in declared]
    return {key: value for keys, values in pairs for key, value in zip(keys, values, strict=True)}


@cache
def load(name: str) -> Script:
    """Read a script and put its includes and constants in place."""
    lines: list[str] = []
    includes: list[str] = []
    values: dict[str, str] = {}
    for line in written(name).splitlines():
        lines.append(line)
        if line.startswith("--constants "):
            for part in line.split()[1:]:
                values |= constants(part)
        if line.startswith("--include "):
            includes = line.split()[1:]
            for part in includes:
                lines.append((_LUA / "include" / f"{part}.lua").read_text("utf-8").rstrip())
    source = _CONSTANT.sub(lambda found: values.get(found[0], found[0]), "\n".join(lines) + "\n")
    reads = "no-writes" in lines[0]
    digest = sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(
        name,
        source,
        digest,
        reads=reads,
        waits=not reads and name not in UNWAITED,
        timed="clock" in includes,
    )
