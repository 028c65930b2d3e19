"""Options of a service: command line over environment over default. Options of the user's own are left alone."""

import argparse
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

LOG_LEVELS = ("debug", "info", "warning", "error")
_DEFAULT_WAIT = 10
# Options of MOSEC that do something else when they are left out, so they must not be passed over in silence.
_NOT_SUPPORTED = ("dry-run", "compression")


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


def parse(argv: Sequence[str] | None = None) -> Options:
    """Reads the options; a bad value ends the program with status 2, as argparse does."""
    parser = _parser(argparse.ArgumentParser(description="serves the workers of this script"))
    values, _ = parser.parse_known_args(argv)
    for name in _NOT_SUPPORTED:
        if getattr(values, name.replace("-", "_")):
            parser.error(f"--{name} is not supported")
    if values.wait != _DEFAULT_WAIT:
        warnings.warn("`--wait` is deprecated, use `max_wait_time` of the worker", DeprecationWarning, stacklevel=3)
    return Options(
        address=values.address,
        port=values.port,
        timeout=values.timeout,
        wait=values.wait,
        capacity=values.capacity,
        max_request_bytes=values.max_request_size,
        namespace=values.namespace,
        log_level=_level(values),
    )


def log_level(argv: Sequence[str] | None = None) -> str:
    """The level alone, for loggers that are made before or without a server. Never ends the program."""
    try:
        values, _ = _parser(_TolerantParser(add_help=False)).parse_known_args(argv)
    except _BadArguments:
        return "info"
    return _level(values)


class _BadArguments(Exception):
    pass


class _TolerantParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _BadArguments(message)


def _level(values: argparse.Namespace) -> str:
    return "debug" if values.debug else values.log_level


def _parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    option = parser.add_argument
    option("--address", default=_env("ADDRESS", str, "0.0.0.0"), help="address to listen on (%(default)s)")
    option("--port", type=_port, default=_env("PORT", _port, 8000), help="port to listen on (%(default)s)")
    option(
        "--timeout",
        type=_positive,
        default=_env("TIMEOUT", _positive, 3000),
        help="longest time from a request to its answer, in milliseconds (%(default)s)",
    )
    option("--wait", type=_positive, default=_DEFAULT_WAIT, help="deprecated: batch window in milliseconds")
    option(
        "--capacity",
        type=_positive,
        default=_env("CAPACITY", _positive, 1024),
        help="length of each stage's queue, in requests (%(default)s)",
    )
    option(
        "--max-request-size",
        type=_positive,
        default=_env("MAX_REQUEST_SIZE", _positive, 10 * 1024 * 1024),
        help="largest request body in bytes (%(default)s)",
    )
    option(
        "--namespace",
        default=_env("NAMESPACE", str, "mosec_service"),
        help="prefix of the metrics (%(default)s)",
    )
    option("--path", help="accepted and unused: no working directory is needed")
    option(
        "--log-level",
        choices=LOG_LEVELS,
        default=_env("LOG_LEVEL", _log_level, "info"),
        help="debug, info, warning or error (%(default)s)",
    )
    option("--debug", action="store_true", default=_env("DEBUG", _boolean, False), help="same as --log-level debug")
    option("--dry-run", action="store_true", default=_env("DRY_RUN", _boolean, False), help=argparse.SUPPRESS)
    option("--compression", action="store_true", help=argparse.SUPPRESS)
    return parser


def _env(name: str, convert: Callable[[str], Any], default: Any) -> Any:
    """`MOSEC_<name>`; empty is unset, and what does not convert is passed over with a warning."""
    text = os.environ.get(f"MOSEC_{name}")
    if not text:
        return default
    try:
        return convert(text)
    except ValueError as error:
        warnings.warn(f"MOSEC_{name}={text!r} is not used: {error}", RuntimeWarning, stacklevel=4)
        return default


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("expected a number above zero")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("expected a port number, 0 to 65535")
    return value


def _log_level(text: str) -> str:
    if text not in LOG_LEVELS:
        raise ValueError(f"expected one of {', '.join(LOG_LEVELS)}")
    return text


def _boolean(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("expected true or false")
    return words[text.lower()]
