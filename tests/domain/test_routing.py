"""Which jobs a worker may run."""

from __future__ import annotations

import pytest

from jobwire_server.domain.decisions.routing import parse_descriptor, route_of, routes_served_by

from tests.support.jobs import worker_spec


@pytest.mark.parametrize(
    ("labels", "served"),
    [
        ({}, False),
        ({"gpu": "a100"}, False),
        ({"gpu": "a100", "zone": "b"}, False),
        ({"gpu": "A100", "zone": "a"}, False),
        ({"gpu": "a100", "zone": "a"}, True),
        ({"gpu": "a100", "zone": "a", "more": "x"}, True),
    ],
)
def test_a_worker_must_have_every_label_with_its_value(
    labels: dict[str, str], served: bool
) -> None:
    route = route_of("work", {"gpu": "a100", "zone": "a"})
    assert route.served_by(worker_spec(labels=labels)) is served


def test_a_worker_must_have_the_operation() -> None:
    assert route_of("work", {}).served_by(worker_spec(operations=("other", "work")))
    assert not route_of("work", {}).served_by(worker_spec(operations=("work.more", "wor")))


def test_a_required_label_without_a_value_is_not_the_same_as_none() -> None:
    route = route_of("work", {"gpu": ""})
    assert not route.served_by(worker_spec())
    assert route.served_by(worker_spec(labels={"gpu": ""}))


def test_the_order_of_requirements_does_not_matter() -> None:
    one, other = route_of("work", {"a": "1", "b": "2"}), route_of("work", {"b": "2", "a": "1"})
    assert one == other
    assert len(one.id) == 16


@pytest.mark.parametrize(
    ("operation", "requirements"),
    [
        ("work", {"a": "12", "b": ""}),
        ("work", {"a": "1", "b": "2"}),
        ("work", {"a": '1","b":"2'}),
        ("work,a", {}),
        ("work", {}),
        ("Work", {}),
    ],
)
def test_different_jobs_have_different_routes(operation: str, requirements: dict[str, str]) -> None:
    others = [route_of("work", {"a": "1"}), route_of("work", {"a": "2"}), route_of("w", {})]
    assert route_of(operation, requirements).id not in [other.id for other in others]


@pytest.mark.parametrize("requirements", [{}, {"a": "ü", "b": '"\\\n'}])
def test_a_descriptor_reads_back(requirements: dict[str, str]) -> None:
    route = route_of("image.thumbnail/1:x", requirements)
    assert parse_descriptor(route.descriptor) == route


def test_an_id_is_the_same_on_every_server_for_ever() -> None:
    # Stored: another value would leave the jobs of an older server where no claim finds them.
    assert route_of("work", {}).id == "6b7595f26276f447"
    assert route_of("work", {"gpu": "a100"}).id == "6df900c2db838028"


def test_the_routes_of_a_worker_are_sorted_and_complete() -> None:
    routes = [route_of(name, {}) for name in ("a", "b", "c")] + [route_of("a", {"gpu": "x"})]
    worker = worker_spec(operations=("a", "c"))
    assert routes_served_by(worker, routes) == tuple(sorted((routes[0].id, routes[2].id)))
