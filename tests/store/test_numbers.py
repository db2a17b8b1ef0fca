"""The numbers and names that Lua and Python share are declared once on each side, and alike."""

from __future__ import annotations

import re
from enum import IntEnum
from importlib.resources import files

import pytest

from jobwire_server.domain.model import Former, JobState, WorkerStatus
from jobwire_server.store import codec
from jobwire_server.store.codes import Code
from jobwire_server.store.scripts import constants, load, names, written

LUA = files("jobwire_server.store") / "lua"
SHARED: dict[str, tuple[type[IntEnum], ...]] = {
    "states": (JobState,),
    "codes": (Code,),
    "workers": (WorkerStatus, Former),
}
FORGOTTEN = "FORGOTTEN"
"""No state, and Lua's alone: what a job is in that no longer exists."""


def _sources() -> dict[str, str]:
    """Return the scripts and their includes as they are written, by file name."""
    includes = [entry for entry in (LUA / "include").iterdir() if entry.name.endswith(".lua")]
    return {entry.name: entry.read_text("utf-8") for entry in includes} | {
        f"{name}.lua": written(name) for name in names()
    }


@pytest.mark.parametrize("part", SHARED)
def test_lua_and_python_have_the_same_numbers(part: str) -> None:
    numbers = {name: int(value) for name, value in constants(part).items() if value.isdigit()}
    numbers.pop(FORGOTTEN, None)
    assert numbers == {member.name: member.value for enum in SHARED[part] for member in enum}


@pytest.mark.parametrize("part", SHARED)
def test_a_number_as_text_is_that_number(part: str) -> None:
    values = constants(part)
    for name, value in values.items():
        if name.endswith("_TEXT"):
            assert value == f"'{values[name.removesuffix('_TEXT')]}'"


def test_no_script_declares_a_shared_number_again() -> None:
    shared = {name for part in SHARED for name in constants(part)}
    for file, source in _sources().items():
        for declared in re.findall(r"\blocal ([A-Z][A-Z_, ]*) =", source):
            assert not shared & set(declared.split(", ")), file


@pytest.mark.parametrize("name", names())
def test_a_script_lists_the_constants_that_it_uses(name: str) -> None:
    source = load(name).source
    code = re.sub(r"--[^\n]*|'[^'\n]*'", "", source)
    listed = re.search(r"^--constants (.+)$", source, re.MULTILINE)
    parts = listed[1].split() if listed else []
    left = {
        value for part in SHARED for value in constants(part) if re.search(rf"\b{value}\b", code)
    }
    assert left == set(), "their file is not listed"
    texts = set(re.findall(r"'([^'\n]*)'", re.sub(r"--[^\n]*", "", source)))
    assert not texts & {constant for part in parts for constant in constants(part)}


def test_the_codec_says_what_each_field_of_a_job_holds() -> None:
    documented = set(re.findall(r"`(\w+)`", codec.__doc__ or ""))
    for file, source in _sources().items():
        if not file.startswith(("worker_", "schedule_", "fire", "trigger")):
            for table in re.findall(r"reader_of\(\{(.*?)\}\)", source, re.DOTALL):
                assert set(re.findall(r"= '(\w+)'", table)) <= documented, file


def test_a_script_asks_for_the_fields_that_it_reads() -> None:
    for file, source in _sources().items():
        asked = {
            name
            for table in re.findall(r"reader_of\(\{(.*?)\}\)", source, re.DOTALL)
            for name in re.findall(r"(\w+) = '", table)
        }
        if asked and file != "fields.lua":
            code = re.sub(r"--[^\n]*", "", source)
            read = set(re.findall(r"\b(?:job|worker|known|schedule|found)\.(\w+)", code))
            assert read <= asked, file
