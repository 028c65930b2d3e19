"""Two routes that share a stage, alone and on a cluster."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("msgpack", reason="examples/multi_route/requirements.txt is not installed")
ALL_BYTES = bytes(range(256))


@pytest.fixture(scope="module", params=["alone", "cluster"])
def service(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Iterator[Any]:
    with serve(Path(__file__).with_name("server.py"), request.param) as running:
        yield running


def test_each_route_has_its_own_codec(service: Any, client: ModuleType, post: Callable[..., Any]) -> None:
    assert client.ask_msgpack(service.url, "all", ALL_BYTES) == {"name": "all", "entropy": 8.0}
    assert post(f"{service.url}/raw", ALL_BYTES) == (200, "text/plain", b"8.000\n")
    assert post(f"{service.url}/msgpack", b"\xc1") == (400, None, b"decoding error: decoding error")
    assert post(f"{service.url}/msgpack", b"\x01")[0::2] == (
        422,
        b'request validation error: expected {"name": text, "data": bytes}',
    )


def test_requests_of_both_routes_in_one_batch_keep_apart(
    service: Any, client: ModuleType, together: Callable[..., list[Any]]
) -> None:
    def ask(number: int) -> Any:
        data = ALL_BYTES[: 2 ** (number % 8)]
        return client.ask_raw(service.url, data) if number % 2 else client.ask_msgpack(service.url, str(number), data)

    for number, answer in enumerate(together(ask, range(32))):
        bits = number % 8
        assert answer == (f"{bits:.3f}\n" if number % 2 else {"name": str(number), "entropy": float(bits)})


def test_the_client_prints_a_file(service: Any, run_client: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "all.bin").write_bytes(ALL_BYTES)
    assert run_client(service.url, tmp_path / "all.bin") == "all.bin: 8.000 bits per byte, 8.000 by /raw\n"
