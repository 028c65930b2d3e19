"""The one wheel serves under every supported Python found on the `PATH` or in the list `MOSEC_TEST_PYTHONS`."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from running import BOUND, Service

SUPPORTED = ["3.11", "3.12", "3.13", "3.14"]
# Read now: later, options of the run's own environment are out of the tests' sight.
NAMED = [python for python in os.environ.get("MOSEC_TEST_PYTHONS", "").split(os.pathsep) if python]
TARGET = Path(__file__).resolve().parents[2] / "target"

SCRIPT = """
import json, sys
from mosec import Server, Worker
from mosec._native import encode_json

# What each interpreter keeps in a way of its own: small and large numbers, texts of each width, shared constants.
VALUES = [0, -1, 255, 257, 2**30, 2**62, 2**63, -2**100, 0.1, 1e-5, -0.0, True, None,
          "", "a", "\\xe9", "\\u6f22", "\\U0001f600", [], (), {},
          [1, [2, (3, {"k": None, 1: 2.5})]], {"a\\n": "b" * 1000}]

class Echo(Worker):
    def forward(self, data):
        for _ in range(1000):
            assert encode_json(VALUES) == json.dumps(VALUES, indent=2).encode()
        assert encode_json([VALUES, {1}]) is None
        return {"python": ".".join(map(str, sys.version_info[:2])), "data": data}

if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, timeout=60)
    server.run()
"""


@cache
def version_of(python: str) -> str | None:
    """`None` for what does not start; a version manager has such placeholders on the `PATH`."""
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=BOUND)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find(version: str) -> str:
    candidates = [*NAMED, shutil.which(f"python{version}"), shutil.which("python3"), sys.executable]
    for python in candidates:
        if python is not None and version_of(python) == version:
            return python
    pytest.skip(f"no Python {version} on the PATH or in MOSEC_TEST_PYTHONS")


@pytest.fixture(scope="module")
def wheel() -> Path:
    wheels = sorted(TARGET.glob("wheel-dev/*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        pytest.skip("there is no wheel: `make wheel-dev` builds it")
    return wheels[-1]


def test_what_is_named_can_be_started() -> None:
    assert [python for python in NAMED if version_of(python) not in SUPPORTED] == []


@pytest.mark.parametrize("version", SUPPORTED)
def test_the_wheel_serves(version: str, wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    subprocess.run([find(version), "-m", "venv", "--without-pip", folder], check=True, timeout=BOUND)
    python = str(folder / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, timeout=BOUND)

    script = tmp_path / "server.py"
    script.write_text(SCRIPT)
    body = {"text": "ä", "numbers": [1, 2.5, None]}
    options = ("--timeout", "60000")
    with Service(tmp_path, script, *options, python=python, env={"PYTHONPATH": ""}) as service:
        status, _, answer = service.post("/inference", json.dumps(body).encode())
        assert (status, answer) == (200, json.dumps({"python": version, "data": body}, indent=2).encode())
        assert service.end() == 0, service.output
