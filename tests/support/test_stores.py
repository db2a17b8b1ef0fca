"""The test support itself: what other tests build on must hold."""

from __future__ import annotations

import redis

from tests.support.stores import StoreProcess


def test_a_store_url_is_empty_at_first(store_url: str) -> None:
    with redis.Redis.from_url(store_url) as client:
        assert client.dbsize() == 0
        client.set("left-by-this-test", "1")


def test_an_own_store_keeps_its_data_and_url_over_kill_and_restart(own_store: StoreProcess) -> None:
    before = own_store.url
    with own_store.client() as client:
        client.config_set("appendfsync", "always")
        client.set("k", "v")
    old = own_store.pid
    own_store.restart()
    assert own_store.url == before
    assert own_store.pid != old
    with own_store.client() as client:
        assert client.get("k") == b"v"
