"""Log lines on stderr: one JSON object each, or coloured text at level debug."""

import json
import logging
from datetime import UTC, datetime

from mosec import args

_COLOURS = {"DEBUG": "\x1b[34m", "INFO": "\x1b[32m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_RESET = "\x1b[0m"


def get_logger() -> logging.Logger:
    """The logger for a service's own lines, at the level of `--log-level`."""
    return _logger("moser.user_log", "user", propagate=True)  # MOSEC's name for it, which users' settings refer to


def internal_logger() -> logging.Logger:
    """The logger for the lines of this package."""
    return _logger("mosec", "mosec", propagate=False)


def one_line(text: str) -> str:
    """Folds a traceback into one line."""
    return text.replace("\n", " ")


def _logger(name: str, prefix: str, propagate: bool) -> logging.Logger:
    logger = logging.getLogger(name)
    if not any(isinstance(handler.formatter, _Formatter) for handler in logger.handlers):
        level = args.log_level()
        handler = logging.StreamHandler()
        handler.setFormatter(_TextFormatter(prefix) if level == "debug" else _JsonFormatter(prefix))
        logger.addHandler(handler)
        logger.setLevel(level.upper())
        logger.propagate = propagate
    return logger


class _Formatter(logging.Formatter):
    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def _time(self, record: logging.LogRecord) -> str:
        return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ ")


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {"message": record.getMessage()}
        if record.exc_info:
            fields["exc_info"] = one_line(self.formatException(record.exc_info))
        if record.stack_info:
            fields["stack_info"] = one_line(self.formatStack(record.stack_info))
        line = {
            "timestamp": self._time(record),
            "level": record.levelname,
            "fields": fields,
            "target": f"{self._prefix}::{record.filename}:{record.funcName}",
        }
        return json.dumps(line)


class _TextFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        colour = _COLOURS.get(record.levelname, "")
        level = f"{colour}{record.levelname}{_RESET}"
        place = f"{self._prefix}::{record.filename}:{record.lineno} [{record.process}]"
        line = f"{self._time(record)} {level} {place}: {record.getMessage()}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line
