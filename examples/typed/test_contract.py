"""The service keeps to its own OpenAPI document, whatever a fuzzer sends that the document leads to."""

import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("msgspec", reason="examples/typed/requirements.txt is not installed")
FUZZER = Path(sysconfig.get_path("scripts")) / "schemathesis"


@pytest.fixture(scope="module", params=["alone", "cluster"])
def service(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Iterator[Any]:
    if not FUZZER.exists():
        pytest.skip("schemathesis is not installed")
    with serve(Path(__file__).with_name("server.py"), request.param) as running:
        yield running


def test_a_fuzzer_finds_no_breach(service: Any, tmp_path: Path) -> None:
    document = f"{service.url}/openapi/metadata.json"
    hooks = {"SCHEMATHESIS_HOOKS": "fuzz_msgpack", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [FUZZER, "run", document, "--max-examples", "150", "--include-path", "/inference", "--continue-on-failure"],
        cwd=tmp_path,
        env=os.environ | hooks,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
