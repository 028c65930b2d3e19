"""`server.py`, alone and on a cluster."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module", params=["alone", "cluster"])
def service(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Iterator[Any]:
    with serve(Path(__file__).with_name("server.py"), request.param) as running:
        yield running


def test_an_answer_is_the_request_as_mosec_writes_it(service: Any, post: Callable[..., Any]) -> None:
    data = {"x": [1, 2.5, None, "é"], "y": {}}
    status, mime, body = post(f"{service.url}/inference", json.dumps(data).encode())
    assert (status, mime, body) == (200, "application/json", json.dumps(data, indent=2).encode())
    assert post(f"{service.url}/inference", b"")[0::2] == (200, b"no data provided")
    assert post(f"{service.url}/nowhere", b"{}")[0::2] == (404, b"")


def test_each_of_many_requests_gets_its_own_answer(
    service: Any, client: ModuleType, together: Callable[..., list[Any]]
) -> None:
    requests = [{"number": number} for number in range(64)]
    assert together(lambda data: client.ask(service.url, data), requests) == requests
