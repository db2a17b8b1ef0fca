"""How commands are packed and sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import AbstractConnection

from jobwire_server.store.connection.sending import TcpConnection

ARGUMENTS = st.lists(st.binary(max_size=50) | st.text(max_size=20) | st.integers() | st.floats())


@given(name=st.sampled_from(["EVAL", "EVALSHA"]), arguments=ARGUMENTS)
def test_a_script_call_is_packed_as_redis_py_would(name: str, arguments: list[Any]) -> None:
    connection = TcpConnection()
    words = (name, "script", 1, "key", *arguments)
    (packed,) = connection.pack_command(*words)
    assert packed == b"".join(AbstractConnection.pack_command(connection, *words))


def test_a_script_call_is_not_packed_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(AbstractConnection, "pack_command")
    assert TcpConnection().pack_command("EVALSHA", "d", 0) == [
        b"*3\r\n$7\r\nEVALSHA\r\n$1\r\nd\r\n$1\r\n0\r\n"
    ]
