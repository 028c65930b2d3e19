"""The cluster that the tests share, and what they measured, told at the end."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from harness import COMPOSE, ROOT, WANTED, Host, compose, has_engine, left_behind

# The queries of dashboards and alerts, which are asked here once more where there is a real cluster.
sys.path.append(str(ROOT / "tests/observability"))

MEASURED: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MEASURED:
        terminalreporter.section("measured")
        for line in MEASURED:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def measured() -> list[str]:
    return MEASURED


@pytest.fixture(scope="session")
def started(measured: list[str]) -> Iterator[float]:
    """The cluster, just started from nothing; when that was. Nothing of it is left at the end."""
    if not has_engine():
        missing = f"no Docker engine answers, or there is no `{' '.join(COMPOSE)}`"
        if os.environ.get("MOSEC_TEST_MUST_DOCKER"):
            pytest.fail(missing)
        pytest.skip(missing)
    measured.append(f"{' '.join(COMPOSE)} {compose('version', '--short').strip()}")
    compose("down", "--volumes", "--remove-orphans")
    began = monotonic()
    compose("build")
    measured.append(f"images built in {monotonic() - began:.0f} s")
    began = monotonic()
    try:
        compose("up", "--detach", *WANTED)
        yield began
    finally:
        compose("down", "--volumes")
    assert left_behind() == []


@pytest.fixture(scope="session")
def host(started: float, tmp_path_factory: pytest.TempPathFactory) -> Host:
    home: Path = tmp_path_factory.mktemp("home")
    host = Host(home)
    host.log_in()
    return host
