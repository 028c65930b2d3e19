"""One run of a script on one side: starts services and programs, and keeps what was seen."""

import contextlib
import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from typing import Any

from .case import ABSENT, FAILED, Case, Seen, flatten
from .service import START_LIMIT, Deployed, Service, environment
from .sides import CLUSTER, SERVICES, Side
from .wire import Response


class Run:
    """What a script gets."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.seen: Seen = {}
        self.broken: list[str] = []

    def see(self, key: str, value: Any, spec: Any = ABSENT) -> None:
        """Keeps a value for the comparison.

        `spec`: what MOSEC is known to do. The reference is held to it, so that two sides that fail in the same way do
        not pass. For a response it may be given as status and body in one text, for a dictionary in part.
        """
        for name, part in flatten(key, value).items():
            if name in self.seen:
                raise AssertionError(f"{name!r} is seen twice")
            self.seen[name] = part
        if spec is ABSENT or not self.side.is_reference:
            return
        if isinstance(value, Response) and isinstance(spec, str):
            self._hold(key, value.short(), spec)
        else:
            for name, part in flatten(key, spec).items():
                self._hold(name, self.seen.get(name, ABSENT), part)

    def _hold(self, key: str, value: Any, spec: Any) -> None:
        if value != spec:
            self.broken.append(f"{key}: the reference is said to give {spec!r}, gives {value!r}")

    @contextlib.contextmanager
    def serve(
        self, file: str, *options: str, env: dict[str, str] | None = None, wait: bool = True
    ) -> Iterator[Service]:
        """Runs a service of the folder `services`, ready unless told not to wait."""
        kind = Deployed if self.side.name == CLUSTER else Service
        service = kind(self.side, file, options, env or {})
        try:
            yield service.ready() if wait else service
        except BaseException as error:
            error.add_note(f"log of {file} on {self.side.name}:\n{service.err[-1500:]}")
            raise
        finally:
            service.end()

    def program(self, *arguments: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Runs Python with these arguments to its end."""
        with tempfile.TemporaryDirectory(prefix="compat-") as folder:
            return subprocess.run(
                [self.side.python, *arguments],
                cwd=SERVICES,
                env=environment(env or {}, folder),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=START_LIMIT,
            )


def perform(case: Case, side: Side) -> Run:
    """Runs the case's script. A script that fails leaves that as the last thing seen."""
    run = Run(side)
    try:
        case.script(run)
    except Exception as error:
        run.seen[FAILED] = "".join(traceback.format_exception(error, limit=-3))
        if side.is_reference:
            run.broken.append(run.seen[FAILED])
    return run
