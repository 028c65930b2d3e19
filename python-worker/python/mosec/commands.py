"""Entry points of the console scripts. The programs themselves are in the native extension."""

import os
import signal
import sys
from typing import NoReturn


def mosectl() -> NoReturn:
    _run("mosectl")


def gateway() -> NoReturn:
    _run("mosec-gateway")


def node_agent() -> NoReturn:
    _run("mosec-node-agent")


def control_plane() -> NoReturn:
    _run("mosec-control-plane")


def _run(name: str) -> NoReturn:
    from mosec import _native

    # Python turns ^C into an exception that nothing would see while the program runs outside of the interpreter.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Workers run in the interpreter that the wheel is installed in, unless told otherwise.
    os.environ.setdefault("MOSEC_PYTHON", sys.executable)
    sys.exit(_native.command(name, sys.argv[1:]))
