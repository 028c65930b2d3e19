"""What all workers of a host have counted is served as one sum."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="examples/metrics/requirements.txt is not installed")


@pytest.mark.parametrize("place", ["alone", "cluster"])
def test_the_sum_over_all_workers(
    place: str,
    serve: Callable[..., Any],
    client: ModuleType,
    run_client: Callable[..., str],
    together: Callable[..., list[Any]],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    port = free_port()
    folder = tmp_path / f"metrics-{port}"
    env = {"METRICS_PORT": str(port), "TMPDIR": str(tmp_path)}
    with serve(Path(__file__).with_name("server.py"), place, env=env) as service:
        # More requests at a time than a worker takes, so that both count.
        answers = together(lambda _: client.ask(service.url, "apples and pears"), range(32))
        assert answers == [{"words": 3}] * 32
        assert len(list(folder.glob("histogram_*.db"))) == 2, "one folder for both"
        counted = client.counted(f"http://127.0.0.1:{port}")
        assert {name: value for name, value in counted.items() if "_total" in name} == {
            'words_total{letter="a"}': 64,
            'words_total{letter="p"}': 32,
        }
        assert counted['text_length_characters_bucket{le="10.0"}'] == 0
        assert counted['text_length_characters_bucket{le="100.0"}'] == 32
        assert not any("words" in name for name in client.counted(service.url)), "the service's own are apart"
        printed = run_client(service.url, "--metrics-url", f"http://127.0.0.1:{port}", "a b")
        assert 'words_total{letter="a"} 65' in printed.splitlines()
    if place == "alone":
        assert not folder.exists(), "it is gone with them"
    shutil.rmtree(folder, ignore_errors=True)
