"""Each worker has its own variables, alone and on a cluster."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module", params=["alone", "cluster"])
def service(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Iterator[Any]:
    with serve(Path(__file__).with_name("server.py"), request.param) as running:
        yield running


def test_each_worker_sees_its_own_device(service: Any, client: ModuleType) -> None:
    answers = client.ask_all(service.url, 4)
    assert {worker: answer["device"] for worker, answer in answers.items()} == {1: "0", 2: "1", 3: "2", 4: "3"}


def test_the_client_prints_them(service: Any, run_client: Callable[..., str]) -> None:
    assert run_client(service.url).splitlines() == [f"worker {at + 1}: device {at}" for at in range(4)]


def test_no_variable_reaches_another_stage(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Any], client: ModuleType
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with serve(Path(__file__).with_name("server.py"), "alone") as running:
        assert client.ask(running.url)["device_of_next_stage"] is None
