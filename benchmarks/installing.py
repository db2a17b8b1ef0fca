"""Installs what benchmarks need beside the product, each into a folder in the user's cache."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
INSTALL_DEADLINE_S = 600.0


class CannotInstall(Exception):
    """A program is missing, or a package could not be had."""


def cache() -> Path:
    """Returns where what is installed is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jobwire-benchmarks"


def home(name: str, *pins: Path) -> Path:
    """Returns the folder of a program: another one as soon as what it is made from changes."""
    digest = hashlib.sha256(b"".join(pin.read_bytes() for pin in pins)).hexdigest()
    return cache() / f"{name}-{digest[:12]}"


def python_peer(name: str) -> tuple[Path, Callable[[Path], Sequence[Sequence[str]]], Sequence[str]]:
    """Returns the folder of a peer in Python, how it is made, and the command that runs it."""
    pins = PEERS / "python" / f"{name}.txt"
    folder = home(name, pins)
    python = str(folder / "bin" / "python")

    def make(at: Path) -> Sequence[Sequence[str]]:
        pip = (str(at / "bin" / "python"), "-m", "pip", "install", "--quiet")
        return (
            (sys.executable, "-m", "venv", str(at)),
            (*pip, "--disable-pip-version-check", "-r", str(pins)),
        )

    return folder, make, (python, str(PEERS / "python" / f"{name}_peer.py"))


def node_peer(name: str) -> tuple[Path, Callable[[Path], Sequence[Sequence[str]]], Sequence[str]]:
    """The same for one on Node.js."""
    source = PEERS / name
    files = [source / file for file in ("package.json", "package-lock.json", "peer.mjs")]
    folder = home(name, *files)

    def make(at: Path) -> Sequence[Sequence[str]]:
        for file in files:
            shutil.copy(file, at)
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund")
        # Not `ci`, which asks for the packages of all platforms in the lock file.
        return ((program("npm"), "install", *quiet),)

    return folder, make, ("node", str(folder / "peer.mjs"))


def go_program(
    source: Path,
) -> tuple[Path, Callable[[Path], Sequence[Sequence[str]]], Sequence[str]]:
    """The same for the Go program in a folder."""
    folder = home(source.name, *sorted(source.glob("*.go")), source / "go.mod", source / "go.sum")
    binary = str(folder / source.name)

    def make(at: Path) -> Sequence[Sequence[str]]:
        return ((program("go"), "build", "-C", str(source), "-o", str(at / source.name), "."),)

    return folder, make, (binary,)


def program(name: str) -> str:
    """Returns the path of a program.

    Raises:
        CannotInstall: It is not there.
    """
    found = shutil.which(name)
    if found is None:
        raise CannotInstall(f"there is no {name} on this machine")
    return found


async def install(folder: Path, make: Callable[[Path], Sequence[Sequence[str]]]) -> None:
    """Makes the folder of a program unless it is there.

    Raises:
        CannotInstall: It could not be made; nothing is left of it.
    """
    ready = folder / ".ready"
    if ready.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    try:
        for command in make(folder):
            await _run(command, folder)
        ready.touch()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


async def _run(command: Sequence[str], folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(INSTALL_DEADLINE_S):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        said = output.decode(errors="replace")[-1000:]
        raise CannotInstall(f"{' '.join(command[:4])} … ended with {process.returncode}: {said}")
