"""Processes that a service cannot do without: when one of them ends, the server does too."""

import multiprocessing.process
import subprocess
import threading
from collections.abc import Callable

Process = subprocess.Popen[bytes] | subprocess.Popen[str] | multiprocessing.process.BaseProcess


class Daemons:
    """The processes of `Server.register_daemon`, by name. They are the caller's: a server that runs never ends one."""

    def __init__(self) -> None:
        self._processes: dict[str, Process] = {}

    def register(self, name: str, process: Process) -> None:
        if not isinstance(name, str):
            raise AssertionError("daemon name should be a string")
        if not isinstance(process, subprocess.Popen | multiprocessing.process.BaseProcess):
            raise AssertionError(f"{type(process)} is not a process or subprocess")
        self._processes[name] = process

    def ended(self) -> tuple[str, int] | None:
        """Name and exit code of one that is no longer there."""
        for name, process in self._processes.items():
            code = process.poll() if isinstance(process, subprocess.Popen) else process.exitcode
            if code is not None:
                return name, code
        return None

    def end(self) -> list[str]:
        """Ends them all, where the service is only looked at. Their names."""
        for process in self._processes.values():
            if isinstance(process, subprocess.Popen) or process.is_alive():
                process.terminate()
        return list(self._processes)

    def watch(self, fail: Callable[[str], None], interval: float, stop: threading.Event) -> None:
        """Looks at them every `interval` seconds, from a thread, until `stop`. `fail` is told of the first to end."""
        if self._processes:
            threading.Thread(target=self._watch, args=(fail, interval, stop), name="mosec-daemons", daemon=True).start()

    def _watch(self, fail: Callable[[str], None], interval: float, stop: threading.Event) -> None:
        while (ended := self.ended()) is None:
            if stop.wait(interval):
                return
        name, code = ended
        fail(f"mosec daemon [{name}] exited on error code: {code}")
