"""Streams of events, alone and on a cluster: the bytes are MOSEC's."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module", params=["alone", "cluster"])
def service(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Iterator[Any]:
    with serve(Path(__file__).with_name("server.py"), request.param) as running:
        yield running


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("hello big world", b"data: hello\n\ndata: big\n\ndata: world\n\n"),
        ("é 東京", "data: é\n\ndata: 東京\n\n".encode()),
        ("two\nlines here", b"data: two\ndata: lines\n\ndata: here\n\n"),
    ],
)
def test_each_word_is_an_event(service: Any, text: str, events: bytes) -> None:
    with urllib.request.urlopen(f"{service.url}/inference", json.dumps({"text": text}).encode(), timeout=60) as answer:
        assert answer.status == 200
        assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("text/event-stream", "no-cache")
        assert answer.read() == events


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"words": 1}', b"422: Unprocessable Content: request validation error: text is required"),
        (b"{", b"400: Bad Request: decoding error: decoding error"),
    ],
)
def test_an_error_is_an_event_too(service: Any, post: Callable[..., Any], body: bytes, said: bytes) -> None:
    status, mime, answer = post(f"{service.url}/inference", body)
    assert (status, mime) == (200, "text/event-stream")
    assert answer == b"event: error\ndata: SSE inference error: " + said + b"\n\n"


def test_streams_that_share_a_batch_keep_apart(
    service: Any, client: ModuleType, together: Callable[..., list[Any]]
) -> None:
    texts = [" ".join(f"{number}.{word}" for word in range(1 + number % 5)) for number in range(24)]
    streams = together(lambda text: list(client.stream(service.url, {"text": text})), texts)
    assert streams == [text.split(" ") for text in texts]


def test_the_client_prints_words_and_raises_errors(
    service: Any, client: ModuleType, run_client: Callable[..., str]
) -> None:
    assert run_client(service.url, "one two") == "one\ntwo\n"
    with pytest.raises(client.StreamError, match="text is required"):
        list(client.stream(service.url, {}))
