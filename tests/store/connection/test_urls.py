"""What is shown of a store's URL holds no part of a password, however it is written."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from jobwire_server.domain.errors import ConfigurationError
from jobwire_server.store.connection.connect import connect
from jobwire_server.store.connection.urls import redacted, tidy

WORD = "Zq7x"
"""Of which passwords are made here, and nothing else."""
PASSWORDS = st.lists(st.sampled_from("/@?#:&=%,;[] ~!$*+<>"), min_size=1, max_size=6).map(
    lambda between: WORD + "".join(mark + WORD for mark in between)
)
FORMS = (
    "redis://:{}@h:6379/0",
    "redis://user:{}@h:6379/0?db=1",
    "rediss://user:{}@h",
    "redis://{}@h",
    "unix://user:{}@/run/store.sock",
    "unix://:{}@/run/store.sock?db=2",
    "redis+sentinel://user:{}@a:1,b:2/main",
    "redis+sentinel://a:1,b:2/main?sentinel_password={}",
    "redis+cluster://user:{}@a:1,b:2",
    "rediss+cluster://:{}@[::1]:2",
    "redis://h:6379/0?password={}",
    "redis://h:6379/0?username=user&password={}&db=1",
    "http://user:{}@h",
    "user:{}@h:6379",
    ":{}@h:6379",
)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=30)
@example(password="Zq7x?Zq7x=Zq7x")
@example(password="Zq7x?db=Zq7x")
@example(password="Zq7x:Zq7x/Zq7x")
@given(password=PASSWORDS)
def test_no_part_of_a_password_is_shown(form: str, password: str) -> None:
    # Before a colon stands the user.
    assume(":{}@" in form or "={}" in form or ":" not in password)
    url = form.format(password)
    assert WORD not in redacted(url)
    try:
        shown = connect(url).url
    except ConfigurationError as refused:
        shown = refused.message
    assert WORD not in shown


@pytest.mark.parametrize("form", [form for form in FORMS[:10] if ":{}@" in form])
@settings(deadline=None, max_examples=30)
@given(password=PASSWORDS)
def test_a_password_is_taken_as_it_is_written(form: str, password: str) -> None:
    client = connect(form.format(password.replace("%", "%25"))).client
    kwargs = getattr(client, "connection_kwargs", None) or client.connection_pool.connection_kwargs
    assert kwargs["password"] == password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:p@ss@h:1/0", "redis://:***@h:1/0"),
        ("redis://:pa/ss@h", "redis://:***@h"),
        ("redis://me:pa/s@s@h:1/0?db=1", "redis://me:***@h:1/0?db=1"),
        ("redis+sentinel://me:p@a:1,b:2/main", "redis+sentinel://me:***@a:1,b:2/main"),
        ("unix:///run/s?db=1", "unix:///run/s?db=1"),
        ("redis://h/0?password=secret&db=1", "redis://h/0?password=***"),
    ],
)
def test_what_is_no_secret_is_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize("url", ["redis://h:1/0?client_name=a@b", "unix:///run/a@b.sock"])
def test_an_at_that_ends_no_password_stays_what_it_is(url: str) -> None:
    assert tidy(url) == url
    connect(url)


@pytest.mark.processes
@pytest.mark.parametrize("url", ["redis://:Zq7x/Zq7x@127.0.0.1:1", "redsi://u:Zq7x@h", ":Zq7x@h"])
def test_no_refusal_of_the_command_shows_the_password(url: str) -> None:
    # Not in this process: a server that ends leaves its signals ignored, also for what starts next.
    told = subprocess.run(
        [sys.executable, "-m", "jobwire_server", "--redis-url", url, "--store-wait", "0s"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert told.returncode in (2, 3)
    assert told.stderr
    assert WORD not in told.stdout + told.stderr
    if told.returncode == 3:
        assert "use --redis-url-file" in told.stderr
