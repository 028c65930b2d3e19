"""`three_stages.py`, alone and on a cluster."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("three_stages.py")


@pytest.fixture(scope="module", params=["alone", "cluster"])
def service(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Iterator[Any]:
    with serve(SCRIPT, request.param) as running:
        yield running


def test_each_request_goes_through_all_stages(
    service: Any, client: ModuleType, together: Callable[..., list[Any]]
) -> None:
    texts = [f"text {number}" for number in range(32)]
    answers = together(lambda text: client.ask(service.url, {"text": text}), texts)
    assert answers == [{"text": text.upper(), "length": len(text)} for text in texts]


def test_the_client_prints_the_answer(service: Any, run_client: Callable[..., str]) -> None:
    assert run_client(service.url, '{"text": "hello"}') == '{"text": "HELLO", "length": 5}\n'


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, b"decoding error: decoding error"),
        (b'{"words": 1}', 422, b'request validation error: expected {"text": "..."}'),
    ],
)
def test_a_bad_request_is_refused_by_the_first_stage(
    service: Any, post: Callable[..., Any], body: bytes, status: int, said: bytes
) -> None:
    assert post(f"{service.url}/inference", body) == (status, None, said)


def test_a_stage_is_warmed_up_before_it_takes_requests(serve: Callable[..., Any]) -> None:
    with serve(SCRIPT, "alone") as running:
        assert "warmup successfully" in running.output()


def test_a_dry_run_sends_the_example_through_all_stages() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--dry-run"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line)["fields"]["message"] for line in done.stderr.splitlines() if line.startswith("{")]
    (result,) = [text for text in said if text.startswith("dry run result: ")]
    assert "warm up" in result and "warmup_duration" in result
