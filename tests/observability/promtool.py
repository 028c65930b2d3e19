"""Runs promtool: that of the machine, of a container image, or of Debian's package, unpacked below target/."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

from boards import ROOT
from lacking import lacks

IMAGE = "prom/prometheus:v3.5.0"
UNPACKED = ROOT / "target/promtool"


def promtool(folder: Path, *args: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it in a folder, which all files that it is given are in; `given` is what it reads from standard input."""
    command = _found()
    if command[0] == "docker":
        mount = ["-v", f"{folder}:/work:ro", "-w", "/work"]
        command = ["docker", "run", "--rm", "-i", *mount, "--entrypoint", "promtool", IMAGE]
    return subprocess.run([*command, *args], cwd=folder, input=given or "", capture_output=True, text=True)


@cache
def _found() -> tuple[str, ...]:
    return found()


def found() -> tuple[str, ...]:
    """The command that runs it, or "docker", which needs to be told more."""
    unpacked = UNPACKED / "usr/bin/promtool"
    if installed := shutil.which("promtool"):
        return (installed,)
    if _has_image():
        return ("docker",)
    if not unpacked.exists():
        _unpack()
    return (str(unpacked),)


def _has_image() -> bool:
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode == 0


def _unpack() -> None:
    """Nothing is installed, and no service started."""
    if not shutil.which("apt-get"):
        lacks("no promtool, no image of Prometheus, and no Debian to take its package from")
    UNPACKED.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-q", "prometheus"], cwd=UNPACKED, check=True, capture_output=True)
    [package] = UNPACKED.glob("prometheus_*.deb")
    subprocess.run(["dpkg", "-x", package, UNPACKED], check=True)
