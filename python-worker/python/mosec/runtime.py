"""How a worker class is run: the number of its processes, its batches and its limits."""

import itertools
from collections.abc import Sequence
from typing import Any

from mosec.worker import Worker

_START_METHODS = ("fork", "spawn")
_BATCHING = ("window", "adaptive")
# One counter for the whole process: names of stages are unique across routes.
_numbers = itertools.count(1)


class Runtime:
    """One stage: a worker class and how it is run. May serve several routes, with one queue for all of them."""

    def __init__(
        self,
        worker: type[Worker],
        num: int = 1,
        max_batch_size: int = 1,
        max_wait_time: int = 0,
        timeout: float = 0.0,
        start_method: str = "spawn",
        env: Sequence[dict[str, str]] | None = None,
        batching: str = "window",
    ) -> None:
        """`max_wait_time`: batch window in ms, 0 for the server's `--wait`.

        `timeout`: longest `forward` in s, 0 for the server's `--timeout`. `env`: variables for each of the `num`
        processes. `start_method`: kept for MOSEC's sake; processes are always started afresh, as by "spawn".
        `batching`: "window", or "adaptive" for batches that leave at once where a process has nothing to do.
        """
        _require(isinstance(worker, type) and issubclass(worker, Worker), "worker must be inherited from mosec.Worker")
        _require_number("worker number", num, 1)
        _require_number("maximum batch size", max_batch_size, 1)
        _require_number("maximum wait time", max_wait_time, 0)
        _require(
            isinstance(timeout, int | float),
            f"forward timeout must be a number but you give {type(timeout)}",
        )
        _require(timeout >= 0, "forward timeout must be no less than 0")
        _require(start_method in _START_METHODS, f"start method must be one of {set(_START_METHODS)}")
        _require_env(env, num)
        _require(batching in _BATCHING, f"batching must be one of {_BATCHING} but you give {batching!r}")
        self.worker = worker
        self.num = num
        self.max_batch_size = max_batch_size
        self.max_wait_time = max_wait_time
        self.timeout = timeout
        self.start_method = start_method
        self.env = None if env is None else list(env)
        self.batching = batching
        self.name = f"{worker.__name__}_{next(_numbers)}"


def _require(holds: bool, problem: str) -> None:
    """As `assert`, which MOSEC's users may catch, but not switched off by `-O`."""
    if not holds:
        raise AssertionError(problem)


def _require_number(what: str, value: Any, least: int) -> None:
    _require(isinstance(value, int), f"{what} must be integer but you give {type(value)}")
    _require(value >= least, f"{what} must be no less than {least}")


def _require_env(env: Any, num: int) -> None:
    if env is None:
        return
    problem = "env must be a list of string dictionary"
    _require(isinstance(env, Sequence) and not isinstance(env, str | bytes), problem)
    _require(len(env) == num, "len(env) must equal to num")
    for variables in env:
        _require(isinstance(variables, dict), problem)
        _require(all(isinstance(text, str) for pair in variables.items() for text in pair), problem)
