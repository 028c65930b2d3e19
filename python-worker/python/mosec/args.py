"""Options of a service: command line over environment over default. Options of the user's own are left alone."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from mosec import env

_DEFAULT_WAIT = 10


@dataclass(frozen=True)
class Options:
    """What `Server` needs to know. Times are in milliseconds."""

    address: str
    port: int
    timeout: int
    wait: int
    capacity: int
    max_request_bytes: int
    namespace: str
    log_level: str
    compression: bool
    dry_run: bool
    reload: bool
    path: str | None


def parse(argv: Sequence[str] | None = None) -> Options:
    """Reads the options; a bad value ends the program with status 2, as argparse does."""
    values = parse_arguments(argv)
    if values.wait != _DEFAULT_WAIT:
        warnings.warn("`--wait` is deprecated, use `max_wait_time` of the worker", DeprecationWarning, stacklevel=3)
    if values.debug:
        warnings.warn("`--debug` is deprecated, use `--log-level debug`", DeprecationWarning, stacklevel=3)
    return Options(
        address=values.address,
        port=values.port,
        timeout=values.timeout,
        wait=values.wait,
        capacity=values.capacity,
        max_request_bytes=values.max_request_size,
        namespace=values.namespace,
        log_level=_level(values),
        compression=values.compression,
        dry_run=values.dry_run,
        reload=values.reload,
        path=values.path,
    )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options under the names of the command line. What is not known is ignored."""
    return _parse(argparse.ArgumentParser(description="Serves the workers of this script.", epilog=_EPILOG), argv)


def log_level(argv: Sequence[str] | None = None) -> str:
    """The level alone, for loggers that are made before or without a server. Never ends the program."""
    try:
        return _level(_parse(_TolerantParser(add_help=False), argv))
    except _BadArguments:
        return "info"


class _BadArguments(Exception):
    pass


class _TolerantParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _BadArguments(message)


_EPILOG = "Options but --wait and --reload are also read from variables: MOSEC_PORT=8080 is --port 8080."


def _level(values: argparse.Namespace) -> str:
    return "debug" if values.debug else values.log_level


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    option = parser.add_argument
    option("--path", metavar="DIR", help="working directory; made if it is not there, and then removed at the end")
    option(
        "--capacity", type=env.positive, default=1024, help="length of each stage's queue, in requests (%(default)s)"
    )
    option(
        "--timeout",
        type=env.positive,
        default=3000,
        help="longest time from a request to its answer, in milliseconds (%(default)s)",
    )
    option("--wait", type=env.not_negative, default=_DEFAULT_WAIT, help="deprecated: batch window in milliseconds")
    option("--address", default="0.0.0.0", help="address or host name to listen on (%(default)s)")
    option("--port", type=env.port, default=8000, help="port to listen on (%(default)s)")
    option("--namespace", default="mosec_service", help="prefix of the metrics (%(default)s)")
    option("--debug", action="store_true", help="same as --log-level debug")
    option("--log-level", choices=env.LOG_LEVELS, default="info", help="debug, info, warning or error (%(default)s)")
    option(
        "--dry-run",
        action="store_true",
        help="start one worker for each stage, send the first one's example through, report and exit",
    )
    option("--compression", action="store_true", help="take and give bodies compressed with gzip or zstd")
    option(
        "--max-request-size",
        type=env.positive,
        default=10 * 1024 * 1024,
        help="largest request body in bytes, after decompression (%(default)s)",
    )
    option("--reload", action="store_true", help="for development: start again when a file of the service changes")
    values, _ = parser.parse_known_args(sys.argv[1:] if argv is None else argv, namespace=env.get_env_namespace())
    return values
