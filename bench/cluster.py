"""Serves a script by separate processes: a control-plane node, a node agent and a gateway, linked by QUIC.

Runs until SIGTERM, and ends what it started. The commands are those of the interpreter it is run with.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

COMMANDS = Path(sysconfig.get_path("scripts"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", type=Path)
    parser.add_argument("--port", type=int, required=True)
    values = parser.parse_args()
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    with tempfile.TemporaryDirectory(prefix="mosec-bench-") as folder:
        daemons: list[subprocess.Popen] = []
        try:
            start(Path(folder), values.script, values.port, daemons)
            signal.sigwait(stop)
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                try:
                    daemon.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
    return 0


def start(folder: Path, script: Path, port: int, daemons: list[subprocess.Popen]) -> None:
    def identity(role: str) -> Path:
        out = folder / role
        tool("ca", "issue", "--dir", folder / "ca", "--role", role, "--name", f"{role}-1", "--out", out)
        return out

    def daemon(name: str, *args: object) -> None:
        # The mask is this script's own affair.
        unblock = lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ())  # noqa: E731
        daemons.append(subprocess.Popen([COMMANDS / name, *map(str, args)], preexec_fn=unblock))

    def tool(*args: object) -> None:
        environment = {**os.environ, "MOSEC_CONTROL_PLANE": control, "MOSEC_IDENTITY": str(folder / "operator")}
        subprocess.run([COMMANDS / "mosectl", *map(str, args)], env=environment, check=True, stdout=sys.stderr)

    control = f"127.0.0.1:{free_port()}"
    tool("ca", "init", "--dir", folder / "ca")
    identity("operator")
    daemon(
        "mosec-control-plane",
        "--cluster-id=bench",
        f"--listen={control}",
        f"--data-dir={folder / 'data'}",
        f"--identity={identity('control-plane')}",
    )
    daemon(
        "mosec-node-agent",
        "--listen=127.0.0.1:0",
        f"--control-plane={control}",
        f"--identity={identity('agent')}",
        f"--python={sys.executable}",
    )
    daemon(
        "mosec-gateway",
        "--address=127.0.0.1",
        f"--port={port}",
        f"--control-plane={control}",
        f"--identity={identity('gateway')}",
    )
    tool("deploy", script)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
