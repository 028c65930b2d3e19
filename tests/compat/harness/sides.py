"""The two sides: the interpreter that has the reference installed, and the one that has this project's wheel."""

import itertools
import os
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SERVICES = Path(__file__).resolve().parent.parent / "services"
REFERENCE = "reference"
OURS = "ours"
# The same file, deployed on a cluster.
CLUSTER = "cluster"


@dataclass(frozen=True)
class Side:
    """One implementation: its name and its Python."""

    name: str
    python: str

    @property
    def is_reference(self) -> bool:
        return self.name == REFERENCE


def side(name: str) -> Side:
    """The side of this name: this project's Python is the one that runs the suite."""
    if name != REFERENCE:
        return Side(name, sys.executable)
    python = os.environ.get("MOSEC_COMPAT_REFERENCE", str(ROOT / "target" / "compat-venv" / "bin" / "python"))
    return Side(REFERENCE, python)


# Below the range from which the system takes ports for outgoing connections, so that none of those can be in the way.
_ports = itertools.cycle(range(21000 + os.getpid() % 100 * 80, 31000))
_ports_lock = threading.Lock()


def free_port() -> int:
    """A port that nobody listens on; each is given once."""
    with _ports_lock:
        for port in _ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("0.0.0.0", port))
                except OSError:
                    continue
                return port
    raise AssertionError("the range of ports is endless")
