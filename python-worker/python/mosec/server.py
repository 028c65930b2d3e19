"""The server a user's script makes: collects stages and routes, and runs them on this machine."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mosec import args, dry_run, openapi, reload, source
from mosec.daemons import Daemons, Process
from mosec.log import internal_logger
from mosec.runtime import Runtime
from mosec.worker import SSEWorker, Worker, header_names

_RESERVED = ("/", "/metrics", "/openapi", "/openapi/metadata.json", "/openapi/swagger", "/openapi/swagger/")
# Most times a request is given to a worker when workers die under it; `DEFAULT_ATTEMPTS` of crates/types/src/spec.rs.
_ATTEMPTS = 3

#: How often a registered daemon is looked at, in seconds.
GUARD_CHECK_INTERVAL = 0.1

# Who takes the specification in `run`'s place, if anyone: `mosec.inspect` sets it before it runs a script.
intercept: Callable[[dict[str, Any]], None] | None = None
# Whether the script is being loaded by a worker process, which must not start a server of its own.
in_worker = False


class Server:
    """A service. Add workers, then `run`. Reads the options of the command line and the environment."""

    def __init__(self) -> None:
        _fill_standard_files()
        self._options = args.parse()
        self._routes: dict[str, list[Runtime]] = {}
        self._daemons = Daemons()
        if intercept is not None or in_worker:
            return
        if self._options.reload:
            reload.run_in_child()
        if not self._options.dry_run:
            _check_port(self._options.address, self._options.port)

    def append_worker(
        self,
        worker: type[Worker],
        num: int = 1,
        max_batch_size: int = 1,
        max_wait_time: int = 0,
        start_method: str = "spawn",
        env: Sequence[dict[str, str]] | None = None,
        timeout: float = 0,
        route: str | list[str] = "/inference",
        batching: str = "window",
    ) -> None:
        """Appends a stage to the pipeline of each route.

        `num`: processes. `max_wait_time`: batch window in ms, below 1 for `--wait`. `timeout`: longest `forward` in s,
        0 or less for `--timeout`. `env`: variables for each of the `num` processes. `batching`: "window", or "adaptive"
        for batches that leave at once where a process has nothing to do.
        """
        routes = [route] if isinstance(route, str) else list(route)
        stage = Runtime(
            worker,
            num=num,
            max_batch_size=max_batch_size,
            max_wait_time=_at_least_zero(max_wait_time),
            timeout=_at_least_zero(timeout),
            start_method=start_method,
            env=env,
            batching=batching,
        )
        _check_routes(routes)
        for path in routes:
            self._routes.setdefault(path, []).append(stage)

    def register_runtime(self, routes: dict[str, list[Runtime]]) -> None:
        """Sets all routes at once. A `Runtime` in several routes is one stage with one queue."""
        if self._routes:
            raise RuntimeError("`register_runtime` can only be registered to an empty mosec server")
        _check_routes(list(routes))
        for path, stages in routes.items():
            for stage in stages:
                if not isinstance(stage, Runtime):
                    raise TypeError(f"route {path!r}: expected mosec.Runtime objects, found {stage!r}")
            if not stages or len(set(map(id, stages))) != len(stages):
                raise ValueError(f"route {path!r}: expected one stage or more, each once")
        self._routes = {path: list(stages) for path, stages in routes.items()}

    def register_daemon(self, name: str, proc: Process) -> None:
        """Makes the service depend on a process that the caller has started, as a `subprocess.Popen` or a
        `multiprocessing.Process`: when it ends, whatever its exit code, the server ends with a status.
        """
        self._daemons.register(name, proc)

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then answers what it has and returns; exits with a status if it cannot.

        With `--dry-run`, runs the examples through the stages instead.
        """
        if not self._routes:
            raise AssertionError(
                "no worker registered\nhelp: use `.append_worker(...)` to register at least one worker"
            )
        if in_worker:
            internal_logger().warning("`run()` does nothing in a worker: put it under `if __name__ == '__main__':`")
            return
        source.tell_search_path()
        spec = self._spec()
        if intercept is not None:
            for name in self._daemons.end():
                internal_logger().warning("daemon %s runs on no node of a cluster: start it there by other means", name)
            intercept(spec)
            return
        with _work_folder(self._options) as folder:
            status = self._dry_run(spec, folder) if self._options.dry_run else self._serve(spec)
        if status != 0:
            sys.exit(status)

    def _serve(self, spec: dict[str, Any]) -> int:
        from mosec import _native

        for stage in self._stages():
            if stage.start_method == "fork":
                internal_logger().warning("%s: start_method 'fork' is taken as 'spawn'", stage.name)
        stop, done = _native.Stop(), threading.Event()
        # They stay when the server has ended, as MOSEC's do: one that comes while the script cleans up changes nothing.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: stop.signal(number))
        self._daemons.watch(stop.fail, GUARD_CHECK_INTERVAL, done)
        try:
            return _native.serve(json.dumps({"spec": spec, "gateway": self._gateway()}), stop)
        finally:
            done.set()

    def _dry_run(self, spec: dict[str, Any], folder: str) -> int:
        try:
            dry_run.run(spec, self._gateway(), folder)
        except dry_run.DryRunError as error:
            internal_logger().error("dry run failed: %s", error)
            return 1
        return 0

    def _gateway(self) -> dict[str, Any]:
        """What the native half needs to know beyond the specification."""
        options = self._options
        return {
            "address": options.address,
            "port": options.port,
            "namespace": options.namespace,
            "log_level": options.log_level,
            "compression": options.compression,
        }

    def _stages(self) -> list[Runtime]:
        """All stages, each once, in the order of the routes."""
        return list({id(stage): stage for stages in self._routes.values() for stage in stages}.values())

    def _spec(self) -> dict[str, Any]:
        """The service as `PipelineSpec` of crates/types/src/spec.rs."""
        stages = self._stages()
        for first, *_ in self._routes.values():
            first.worker._check(first.max_batch_size > 1)
        index = {id(stage): at for at, stage in enumerate(stages)}
        return {
            "name": "local",
            "source": source.describe_main(),
            "stages": [self._stage_spec(stage) for stage in stages],
            "routes": [
                {"path": path, "stages": [index[id(stage)] for stage in stages]}
                for path, stages in self._routes.items()
            ],
            "timeout": self._options.timeout,
            "capacity": self._options.capacity,
            "max_request_bytes": self._options.max_request_bytes,
            "openapi": openapi.document(self._routes),
        }

    def _stage_spec(self, stage: Runtime) -> dict[str, Any]:
        module, name = source.locate(stage.worker)
        mime = stage.worker.resp_mime_type
        if not isinstance(mime, str):
            raise TypeError(f"expected a string as {name}.resp_mime_type, found {mime!r}")
        return {
            "name": stage.name,
            "module": module,
            "class": name,
            "replicas": int(stage.num),
            "max_batch_size": int(stage.max_batch_size),
            "max_wait": stage.max_wait_time or self._options.wait,
            "batching": stage.batching,
            # Whole milliseconds; a limit of zero would mean none.
            "timeout": max(1, round(stage.timeout * 1000)) if stage.timeout else self._options.timeout,
            "env": stage.env or [],
            "node_labels": {},
            "delivery": "retry",
            "attempts": _ATTEMPTS,
            "mime": mime,
            "streaming": issubclass(stage.worker, SSEWorker),
            "request_headers": header_names(stage.worker),
        }


def _fill_standard_files() -> None:
    """Opens what the process was started without, or the next file or socket would be its standard output or error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


@contextlib.contextmanager
def _work_folder(options: args.Options) -> Iterator[str]:
    """The folder of `--path`, made and removed again; what was there before stays. One of its own for a dry run."""
    if options.path is None:
        folder = tempfile.TemporaryDirectory(prefix="mosec_") if options.dry_run else contextlib.nullcontext("")
        with folder as path:
            yield path
        return
    is_new = not os.path.isdir(options.path)
    os.makedirs(options.path, exist_ok=True)
    try:
        yield options.path
    finally:
        if is_new:
            shutil.rmtree(options.path, ignore_errors=True)


def _at_least_zero(value: Any) -> Any:
    """Below zero means the server's default, as zero does; what is not a number is left for `Runtime` to refuse."""
    return 0 if isinstance(value, int | float) and value < 0 else value


def _check_routes(paths: list[str]) -> None:
    if not paths:
        raise ValueError("expected at least one route")
    if len(set(paths)) != len(paths):
        raise ValueError(f"expected each route once, found {paths}")
    for path in paths:
        if path in _RESERVED:
            raise ValueError(f"'{path}' is reserved, try another one")
        if not isinstance(path, str) or not path.startswith("/") or any(mark in path for mark in "{}?#"):
            raise ValueError(f"expected a route that starts with '/' and has no '{{', '}}', '?' or '#', found {path!r}")


def _check_port(address: str, port: int) -> None:
    """Finds out early, before models are loaded, that the address is unknown or taken."""
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise RuntimeError(f"`--address {address}` cannot be resolved: {error}") from error
    if port == 0:
        return
    family, kind, protocol, _, target = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.settimeout(1)
        if probe.connect_ex(target) == 0:
            raise RuntimeError(f"{address}:{port} is in use. Please change to a free one (use `--port`).")
