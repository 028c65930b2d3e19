"""`--reload`: runs the service in a child process, and starts it again when one of its files has changed.

For development. Watched are the Python files below the folder of the script. The files' times are looked at from time
to time, which needs no package and works on every file system.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from mosec.log import internal_logger

_INTERVAL = 0.3
# Set in the child's environment to its parent's id; the child serves.
_VARIABLE = "MOSEC_INTERNAL_RELOAD"
# Folders that hold no code of the user's, and many files.
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}
# An editor that saves several files has this long to get done, in seconds.
_SETTLE = 0.1

Times = dict[str, int]


def run_in_child() -> None:
    """Returns at once in the child. The parent never returns: it keeps a child running until it is told to end."""
    parent = os.environ.pop(_VARIABLE, None)
    if parent is None:
        _supervise()
    threading.Thread(target=_end_with_parent, args=(int(parent),), name="mosec-reload", daemon=True).start()


def snapshot(folder: Path) -> Times:
    """The time of the last change of each Python file below `folder`."""
    return dict(_python_files(str(folder)))


def changed(before: Times, after: Times) -> list[str]:
    """Files that came, went, or have another time."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _python_files(folder: str) -> Iterator[tuple[str, int]]:
    for place, folders, files in os.walk(folder):
        # Hidden folders are version control's and tools'; a virtual environment has a file of its own in it.
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED
            and not os.path.exists(os.path.join(place, name, "pyvenv.cfg"))
        ]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(place, name)
                try:
                    yield path, os.stat(path).st_mtime_ns
                except FileNotFoundError:
                    continue  # an editor replaced it just now


def _supervise() -> NoReturn:
    folder = _script_folder()
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    internal_logger().info("reload is on: watching %s", folder)
    status = 0
    while not told.is_set():
        before = snapshot(folder)
        child = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=os.environ | {_VARIABLE: str(os.getpid())})
        files = _wait_for_change(folder, before, child, told)
        if files:
            internal_logger().info("changed: %s; starting again", ", ".join(files))
        child.terminate()  # it finishes what it has; nothing happens to one that has ended
        status = child.wait()
    sys.exit(status)


def _script_folder() -> Path:
    script = getattr(sys.modules["__main__"], "__file__", None)
    return Path.cwd() if script is None else Path(script).resolve().parent


def _wait_for_change(folder: Path, before: Times, child: subprocess.Popen[bytes], told: threading.Event) -> list[str]:
    """The files that have changed; none where a signal came first."""
    reported = False
    while not told.wait(_INTERVAL):
        if files := changed(before, snapshot(folder)):
            time.sleep(_SETTLE)
            return files
        if not reported and child.poll() is not None:
            reported = True
            internal_logger().warning("the service ended with status %s; waiting for a change", child.returncode)
    return []


def _end_with_parent(parent: int) -> None:
    """A parent that was killed passes nothing on: its child would keep the port."""
    while os.getppid() == parent:
        time.sleep(_INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
