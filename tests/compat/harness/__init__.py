"""Runs the same script against MOSEC and against this project, and compares what it saw."""

from .case import ABSENT, ANY, Case, Difference, Gap, case, on_cluster
from .run import Run
from .sides import Side
from .wire import Connection, Response, Stream

__all__ = [
    "ABSENT",
    "ANY",
    "Case",
    "Connection",
    "Difference",
    "Gap",
    "Response",
    "Run",
    "Side",
    "Stream",
    "case",
    "on_cluster",
]
