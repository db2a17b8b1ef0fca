"""Each script's header is its documentation; these tests hold it to the script."""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib.resources import files

import pytest

from jobwire_server.store.codes import Code
from jobwire_server.store.scripts import modules, names, written

FOLDER = files("jobwire_server.store") / "lua"
SUBMISSIONS = {"submit", "submit_claim", "fire", "trigger", "schedule_write", "register"}
ANSWERS_OF = {
    "identity": "submit",
    "limits": "submit",
    "admit": "submit",
    "enter": "submit",
    "cancel": "cancel",
}
"""Included files whose answers are told in one script's header; others hand them on or not."""
LOOPS = (
    r"= (?:first|at|\d+), #ARGV|while at <= #ARGV|enter_jobs\(P, now, \w+, ARGV, first|7, #ARGV\)$"
)
WRITES = re.compile(
    r"p?call\('(?:SET|SETNX|MSETNX|DEL|UNLINK|HSET|HSETNX|HDEL|HINCRBY|[LR]PUSH|LPOP|LTRIM|LINSERT"
    r"|ZADD|ZREM|ZPOPMIN|SADD|SREM|SPUBLISH)'"
)


def _split(name: str, leave_out: Collection[str] = ()) -> tuple[str, str]:
    """Return the header and the body, the included files but some in the body."""
    lines = written(name).splitlines()
    header: list[str] = []
    for line in lines:
        if not line.startswith(("--", "#!")):
            break
        if not line.startswith(("--include ", "--constants ")):
            header.append(line)
    body = [line for line in lines[len(header) :] if not line.startswith(("--include", "--const"))]
    for line in lines:
        if line.startswith("--include "):
            for part in set(line.split()[1:]) - set(leave_out):
                body.append((FOLDER / "include" / f"{part}.lua").read_text("utf-8"))
    return "\n".join(header), re.sub(r"--[^\n]*", "", "\n".join(body))


def _suffixes(body: str) -> set[str]:
    """Return what the body appends to its key prefix."""
    found = set(re.findall(r"\b(?:P|prefix) \.\. '([^']+)'", body))
    if re.search(r"\bP \.\. (?:name|kind)\b", body):
        for names_of_loop in re.findall(r"ipairs\(\{([^}]*)\}\)", body):
            found |= set(re.findall(r"'([^']+)'", names_of_loop))
        found |= set(re.findall(r"due_in\('([^']+)'\)", body))
    # A key that is chosen out of a table.
    for table in re.findall(r"local KEY = \{([^}]*)\}", body):
        found |= set(re.findall(r"'([^']+)'", table))
    return found


def _documented(header: str, seen: frozenset[str] = frozenset()) -> str:
    """Return the header with those that it refers to for its keys."""
    text = header
    for name in re.findall(r"\(((?:include/)?\w+)\.lua\)", header):
        if name not in seen:
            if name.startswith("include/"):
                text += (FOLDER / f"{name}.lua").read_text("utf-8")
            else:
                text += _documented(_split(name)[0], seen | {name})
    return text


def _names(suffix: str, text: str) -> bool:
    # `done:` is named by `done:<state>` as well as by `done:7`.
    end = r"(?:<\w+>|\d)" if suffix.endswith(":") else r"(?![\w:])"
    return re.search(rf"(?<![\w:]){re.escape(suffix)}{end}", text) is not None


def test_there_are_scripts() -> None:
    assert {"submit", "claim", "succeed", "end_attempt", "tick"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_the_arguments_of_the_header_are_those_that_the_script_reads(name: str) -> None:
    header, body = _split(name)
    for kind in ("KEYS", "ARGV"):
        documented = set(re.findall(rf"{kind}\[(\d+)\]", header))
        used = set(re.findall(rf"{kind}\[(\d+)\]", body))
        assert documented == used, f"{kind} of the header and of the body differ"
    loops = re.search(LOOPS, body, re.MULTILINE) is not None
    assert loops == ("for each" in header.split("Returns")[0].replace("then:", "")), "the items"


@pytest.mark.parametrize("name", names())
def test_the_step_of_a_batch_is_the_number_of_values_that_the_header_names(name: str) -> None:
    header, body = _split(name)
    words = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "ten": 10}
    documented = re.search(r"then for each \w+ (one|two|three|four|five|six|ten):", header)
    if documented is None:
        return
    step = r"for (?:at|from) = (?:first|at|\d+), %s(?:, (\d+))?"
    # A submission hands its arguments on as they are, and a claim those of its requests.
    ends = ("#ARGV", "#items", "last")
    steps = next(filter(None, (re.findall(step % end, body) for end in ends)))
    assert {int(step or 1) for step in steps} == {words[documented[1]]}


@pytest.mark.parametrize("name", names())
def test_each_key_that_the_script_makes_is_named_in_its_header(name: str) -> None:
    header, body = _split(name)
    suffixes = _suffixes(body)
    assert suffixes, "the script touches no key"
    text = _documented(header)
    assert {suffix for suffix in suffixes if not _names(suffix, text)} == set()


@pytest.mark.parametrize("name", names())
def test_each_code_that_the_script_answers_is_told_in_its_header(name: str) -> None:
    others = {part for part, owner in ANSWERS_OF.items() if owner != name}
    header, body = _split(name, others)
    returns = header.split("-- Returns", 1)[1]
    any_code = rf"\b(?:{'|'.join(code.name for code in Code)})\b"
    # What is compared with a code is an answer of an included file, not of the script.
    codes = set(re.findall(rf"(?<![=~]= ){any_code}", body))
    assert codes - set(re.findall(any_code, returns)) == set(), (
        "codes that the header does not name"
    )


@pytest.mark.parametrize("name", names())
def test_only_what_brings_new_data_is_refused_by_a_full_store(name: str) -> None:
    header, body = _split(name)
    flags = header.splitlines()[0]
    writes = WRITES.search(body) is not None
    if not writes:
        assert flags == "#!lua flags=no-writes"
    elif name in SUBMISSIONS:
        assert flags == "#!lua"
    else:
        assert flags == "#!lua flags=allow-oom"


@pytest.mark.parametrize("name", names())
def test_a_script_stands_in_the_folder_of_the_module_that_runs_it(name: str) -> None:
    module = files("jobwire_server.store") / f"{modules()[name]}.py"
    assert f'"{name}"' in module.read_text("utf-8")
