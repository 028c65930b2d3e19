"""Requests checked against types, alone and on a cluster."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

msgspec = pytest.importorskip("msgspec", reason="examples/typed/requirements.txt is not installed")
GOOD = {"item": "bread", "count": 2, "price": 1.5}


@pytest.fixture(scope="module", params=["alone", "cluster"])
def service(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Iterator[Any]:
    with serve(Path(__file__).with_name("server.py"), request.param) as running:
        yield running


def test_what_fits_is_answered(service: Any, post: Callable[..., Any]) -> None:
    status, mime, body = post(f"{service.url}/inference", msgspec.msgpack.encode(GOOD | {"unknown": 1}))
    assert (status, mime) == (200, "application/msgpack")
    answer = msgspec.msgpack.decode(body)
    assert (answer["item"], answer["total"]) == ("bread", 3.0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": "two"}, b"Expected `int`, got `str` - at `$.count`"),
        ({"count": 0}, b"Expected `int` >= 1 - at `$.count`"),
        ({"notes": ["x", 1]}, b"Expected `str`, got `int` - at `$.notes[1]`"),
    ],
)
def test_what_does_not_fit_is_told_its_place(
    service: Any, post: Callable[..., Any], wrong: dict[str, Any], said: bytes
) -> None:
    status, mime, body = post(f"{service.url}/inference", msgspec.msgpack.encode(GOOD | wrong))
    assert (status, mime, body) == (422, None, b"request validation error: " + said)


def test_requests_are_checked_one_by_one_and_run_together(
    service: Any, client: ModuleType, together: Callable[..., list[Any]]
) -> None:
    answers = together(lambda count: client.ask(service.url, GOOD | {"count": count}), range(1, 33))
    assert [answer["total"] for answer in answers] == [count * 1.5 for count in range(1, 33)]
    assert all(1 <= answer["batch"] <= 8 for answer in answers)


def test_the_client_prints_both_kinds_of_answer(service: Any, run_client: Callable[..., str]) -> None:
    good, bad = run_client(service.url).splitlines()
    assert "'total': 3.0" in good
    assert bad == "422: request validation error: Expected `int`, got `str` - at `$.count`"
