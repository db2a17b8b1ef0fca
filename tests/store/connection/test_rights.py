"""The rights of the store's user: tried by doing, and named with the rule that mends them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable

import pytest
import redis

from jobwire_server.store.connection.connect import Connection, StoreRefused, connect
from jobwire_server.store.connection.preflight import Inspection, check_store
from jobwire_server.store.connection.rights import COMMANDS
from jobwire_server.store.scripts import load, names

from tests.support.stores import StoreProcess

PASSWORD = "p"
ENOUGH = ("~jw:*", "&jw:*", "+@all", "-@admin", "-@dangerous", "+info", "+config|get")
As = Callable[..., Connection]


@pytest.fixture
async def as_user(own_store: StoreProcess) -> AsyncIterator[As]:
    """Connect as a user with these rules, or changes what the user may do."""
    made: list[Connection] = []
    client = redis.Redis.from_url(own_store.url)

    def connected(*rules: str) -> Connection:
        client.execute_command("ACL", "SETUSER", "jw", "reset", "on", f">{PASSWORD}", *rules)
        made.append(connect(own_store.url.replace("unix://", f"unix://jw:{PASSWORD}@")))
        return made[-1]

    yield connected
    for connection in made:
        await connection.close()
    client.close()


def test_every_command_of_a_script_is_tried() -> None:
    texts = [load(name).source for name in names()]
    called = re.compile(r"(?:p?call|each_slice)\('([A-Z]+)'")
    used = {name for text in texts for name in called.findall(text)}
    assert used == {name for name, *_ in COMMANDS}


async def test_a_user_with_enough_rights_is_taken_and_leaves_no_key(
    as_user: As, own_store: StoreProcess
) -> None:
    info = await check_store(as_user(*ENOUGH))
    assert info.warnings == ()
    with redis.Redis.from_url(own_store.url) as client:
        assert client.keys("*") == []


async def test_what_is_not_needed_is_gone_without(as_user: As) -> None:
    info = await check_store(as_user("~*", "&*", "+@all", "-@dangerous"))
    (warning,) = info.warnings
    assert "maxmemory-policy" in warning
    assert info.version


@pytest.mark.parametrize(
    ("rules", "lacks", "remedy"),
    [
        (("~jw:*", "&jw:*", "+@all", "-@scripting"), "the command EVAL", "+eval +evalsha"),
        (("~jw:*", "&jw:*", "+@all", "-evalsha"), "the command EVAL", "+eval +evalsha"),
        (("~jw:*", "resetchannels", "+@all"), "channels that begin with jw:", "&jw:*"),
        (("~other:*", "&jw:*", "+@all"), "keys that begin with jw:", "~jw:*"),
        (("~jw:*", "&jw:*", "+@all", "-ssubscribe"), "the command SSUBSCRIBE", "+ssubscribe"),
        (("~jw:*", "&jw:*", "+@all", "-zrangebylex"), "the command ZRANGEBYLEX", "+zrangebylex"),
        (("~jw:*", "&jw:*", "+@all", "-@stream"), "the command XADD", "+xadd"),
    ],
)
async def test_what_the_user_lacks_is_named_with_the_rule_that_mends_it(
    as_user: As, rules: tuple[str, ...], lacks: str, remedy: str
) -> None:
    with pytest.raises(StoreRefused) as refused:
        await check_store(as_user(*rules))
    message = refused.value.message
    assert lacks in message
    run = message.rpartition("run: ")[2]
    assert run.startswith("ACL SETUSER jw ")
    assert remedy in run
    assert "\n" not in message
    # And it does mend it.
    await check_store(as_user(*rules, *run.split()[3:]))


async def test_each_single_command_is_named(as_user: As) -> None:
    for name in sorted({name for name, *_ in COMMANDS}):
        with pytest.raises(StoreRefused, match=rf"the command {name}\b"):
            await check_store(as_user("~*", "&*", "+@all", f"-{name.lower()}"))


async def test_a_right_that_is_taken_away_is_found_and_its_return_too(as_user: As) -> None:
    connection = as_user(*ENOUGH)
    inspection = Inspection(connection, allow_volatile=False, always=False)
    assert await inspection.look(rights=True) == ""
    as_user(*ENOUGH, "-zadd")
    assert "+zadd" in await inspection.look(rights=True)
    as_user(*ENOUGH)
    assert await inspection.look(rights=True) == ""
