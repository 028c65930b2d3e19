"""Serve machine-learning models: write `Worker` classes, hand them to a `Server`, run the file.

The names and their behaviour are those of MOSEC, so an existing service runs unchanged.
"""

import sys

if sys.version_info < (3, 11):  # the extension's stable ABI has the buffer protocol from 3.11 on  # noqa: UP036 - pip's own check can be bypassed
    raise ImportError("mosec-cluster needs Python 3.11 or later")

from mosec.context import Context
from mosec.errors import ClientError, DecodingError, EncodingError, ServerError, ValidationError
from mosec.log import get_logger
from mosec.runtime import Runtime
from mosec.server import Server
from mosec.worker import SSEWorker, Worker

__all__ = [
    "ClientError",
    "Context",
    "DecodingError",
    "EncodingError",
    "Runtime",
    "SSEWorker",
    "Server",
    "ServerError",
    "ValidationError",
    "Worker",
    "get_logger",
]
