"""What all workers have counted is served as one sum, alone and on a cluster."""

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="examples/metrics/requirements.txt is not installed")

SCRIPT = Path(__file__).with_name("server.py")


@pytest.fixture
def port(free_port: Callable[[], int]) -> Iterator[int]:
    port = free_port()
    yield port
    shutil.rmtree(Path(tempfile.gettempdir(), f"metrics-{port}"))


@pytest.fixture
def server_of_metrics(port: int, until: Callable[..., Any]) -> Callable[..., int]:
    """Waits until processes of a service have served the metrics, one after the other. The process of the last one."""

    def wait(service: Any, count: int = 1) -> int:
        said = rf"process (\d+) serves the metrics of this host at port {port}\b"

        def enough() -> list[str] | None:
            found = re.findall(said, service.output())
            return found if len(found) >= count else None

        return int(until(enough, f"{count} lines {said!r}")[-1])

    return wait


@pytest.mark.parametrize("place", ["alone", "cluster"])
def test_the_sum_over_all_workers(
    place: str,
    serve: Callable[..., Any],
    client: ModuleType,
    run_client: Callable[..., str],
    together: Callable[..., list[Any]],
    port: int,
    server_of_metrics: Callable[..., int],
) -> None:
    metrics = f"http://127.0.0.1:{port}"
    with serve(SCRIPT, place, env={"METRICS_PORT": str(port)}) as service:
        # More requests at a time than a worker takes, so that both count.
        answers = together(lambda _: client.ask(service.url, "apples and pears"), range(32))
        assert answers == [{"words": 3}] * 32
        process = server_of_metrics(service)
        counted = client.counted(metrics)
        assert {name: value for name, value in counted.items() if "_total" in name} == {
            'words_total{letter="a"}': 64,
            'words_total{letter="p"}': 32,
        }
        assert counted['text_length_characters_bucket{le="10.0"}'] == 0
        assert counted['text_length_characters_bucket{le="100.0"}'] == 32
        assert not any("words" in name for name in client.counted(service.url)), "the service's own are apart"
        printed = run_client(service.url, "--metrics-url", metrics, "a b")
        assert 'words_total{letter="a"} 65' in printed.splitlines()
        os.kill(process, signal.SIGKILL)
        assert server_of_metrics(service, 2) != process
        assert client.counted(metrics)['words_total{letter="a"}'] == 65, "what a process has counted outlives it"
        assert client.ask(service.url, "apples") == {"words": 1}
        assert client.counted(metrics)['words_total{letter="a"}'] == 66


def test_each_run_counts_from_zero(
    serve: Callable[..., Any], client: ModuleType, port: int, server_of_metrics: Callable[..., int]
) -> None:
    for _ in range(2):
        with serve(SCRIPT, "alone", env={"METRICS_PORT": str(port)}) as service:
            assert client.ask(service.url, "plums") == {"words": 1}
            server_of_metrics(service)
            assert client.counted(f"http://127.0.0.1:{port}")['words_total{letter="p"}'] == 1
