"""Runs each case on both sides at once, and several cases side by side: most of their time is spent waiting."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness.case import Case  # noqa: E402
from harness.run import Run, perform  # noqa: E402
from harness.sides import REFERENCE, side  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--jobs", type=int, default=4, help="cases that run at the same time")
    parser.addoption("--gaps", action="store_true", help="show what is missing instead of expecting it")
    parser.addoption("--side", choices=("both", "reference"), default="both", help="check the reference alone")


class Outcomes:
    """The runs under way, and what came of them."""

    def __init__(self, cases: list[Case], jobs: int, alone: bool, show_gaps: bool) -> None:
        self._alone = alone
        self._show_gaps = show_gaps
        self._cases = ThreadPoolExecutor(jobs)
        self._runs = ThreadPoolExecutor(jobs * 2)
        # What the reference does is looked at once for a script, wherever this project's half runs.
        self._reference: dict[Callable[[Run], None], Future[Run]] = {}
        self._lock = threading.Lock()
        self._results = {id(case): self._cases.submit(self._perform, case) for case in cases}

    def _perform(self, case: Case) -> list[Run]:
        with self._lock:
            if case.script not in self._reference:
                self._reference[case.script] = self._runs.submit(perform, case, side(REFERENCE))
            runs = [self._reference[case.script]]
        if not self._alone:
            runs.append(self._runs.submit(perform, case, side(case.side)))
        return [run.result() for run in runs]

    def check(self, case: Case) -> None:
        reference, *ours = self._results[id(case)].result()
        problems = list(reference.broken)
        if ours and self._show_gaps:
            case = replace(case, gaps=[])
        if ours:
            problems += case.problems(reference.seen, ours[0].seen)
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)
        if case.gaps and ours:
            pytest.xfail("; ".join(gap.what for gap in case.gaps))

    def close(self) -> None:
        self._cases.shutdown(cancel_futures=True)
        self._runs.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    cases = [item.function.case for item in request.session.items if hasattr(getattr(item, "function", None), "case")]
    option = request.config.getoption
    made = Outcomes(cases, option("--jobs"), option("--side") == "reference", option("--gaps"))
    yield made
    made.close()
