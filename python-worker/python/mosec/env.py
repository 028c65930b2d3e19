"""Options from environment variables, and what a text must look like to be one of them."""

import argparse
import os
import warnings
from collections.abc import Callable
from typing import Any

LOG_LEVELS = ("debug", "info", "warning", "error")
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("expected a number above zero")
    return value


def not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("expected zero or a number above")
    return value


def port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("expected a port number, 0 to 65535")
    return value


def log_level(text: str) -> str:
    if text not in LOG_LEVELS:
        raise ValueError(f"expected one of {', '.join(LOG_LEVELS)}")
    return text


def boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError("expected true or false")
    return _BOOLEANS[text.lower()]


# Options that a variable can set, by their name in the parsed arguments.
_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "path": str,
    "capacity": positive,
    "timeout": positive,
    "address": str,
    "port": port,
    "namespace": str,
    "debug": boolean,
    "log_level": log_level,
    "dry_run": boolean,
    "compression": boolean,
    "max_request_size": positive,
}


def get_env_namespace(prefix: str = "MOSEC_") -> argparse.Namespace:
    """The options that are set: `MOSEC_PORT` is `port`. Empty is unset; what does not convert is not used."""
    found = argparse.Namespace()
    for name, convert in _CONVERTERS.items():
        variable = f"{prefix}{name.upper()}"
        text = os.environ.get(variable)
        if not text:
            continue
        try:
            setattr(found, name, convert(text))
        except ValueError as error:
            warnings.warn(f"{variable}={text!r} is not used: {error}", RuntimeWarning, stacklevel=2)
    return found
