"""How processes are started: the worker's main module, and the console scripts."""

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

import mosec
from mosec import commands

# Imported by every Python process that finds it: puts a stand-in where the native extension would be.
SITE = """
import sys, types
import mosec
sys.path.append({tests!r})
from fake_channel import FakeChannel
sys.path.remove({tests!r})
channel = FakeChannel([[(3, b"1")]])
native = types.ModuleType("mosec._native")
native.Channel = types.SimpleNamespace(attach=lambda: (channel, {spec!r}))
sys.modules["mosec._native"] = mosec._native = native
import atexit, json
atexit.register(lambda: print(json.dumps([channel.events, [payload.decode() for _, payload in channel.answers[1]]])))
"""


@pytest.mark.parametrize("flags", [[], ["-P"]])
def test_a_worker_process(tmp_path: Path, python_path: str, flags: list[str]) -> None:
    site, elsewhere, code = tmp_path / "site", tmp_path / "elsewhere", tmp_path / "code"
    for folder in (site, elsewhere, code):
        folder.mkdir()
    (code / "workers.py").write_text(
        "import sys\nfrom mosec import Worker\n"
        "class Paths(Worker):\n    def forward(self, data): return sys.path[:2] + [sys.modules['__main__'].__file__]\n"
    )
    spec = {
        "source": {"dir": str(code), "main": None, "argv": []},
        "stage": {"name": "Paths_1", "module": "workers", "class": "Paths", "max_batch_size": 1, "timeout": 3000},
        "replica": 1,
    }
    (site / "sitecustomize.py").write_text(SITE.format(tests=str(Path(__file__).parent), spec=json.dumps(spec)))
    done = subprocess.run(
        [sys.executable, *flags, "-m", "mosec.runner"],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{python_path}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    events, (answer,) = json.loads(done.stdout)
    assert events == ["ready", "started", "ended"]
    first, second, main = json.loads(answer)
    assert (first, second) == (str(code), str(site)), "the folder it was started in is not searched"
    assert Path(main).name == "runner.py"


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (commands.mosectl, "mosectl"),
        (commands.gateway, "mosec-gateway"),
        (commands.node_agent, "mosec-node-agent"),
        (commands.control_plane, "mosec-control-plane"),
    ],
)
def test_a_console_script_runs_its_program(monkeypatch: pytest.MonkeyPatch, entry: object, name: str) -> None:
    calls: list[object] = []
    native = types.ModuleType("mosec._native")
    native.command = lambda *call: calls.append((*call, signal.getsignal(signal.SIGINT))) or 7
    monkeypatch.setitem(sys.modules, "mosec._native", native)
    monkeypatch.setattr(mosec, "_native", native, raising=False)
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{name}", "--help"])
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as exit_:
            entry()
    finally:
        signal.signal(signal.SIGINT, before)
    assert exit_.value.code == 7
    assert calls == [(name, ["--help"], signal.SIG_DFL)]
