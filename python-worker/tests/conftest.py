"""What the tests share. They run on the installed package, or on the source tree where it is not installed."""

import importlib.util
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "python"


def _is_installed() -> bool:
    package = importlib.util.find_spec("mosec")  # another package of this name has no runner
    return package is not None and importlib.util.find_spec("mosec.runner") is not None


if not _is_installed():
    for name in [name for name in sys.modules if name.partition(".")[0] == "mosec"]:
        del sys.modules[name]
    sys.path.insert(0, str(SOURCE))


@pytest.fixture
def python_path() -> str:
    """`PYTHONPATH` by which a child process finds the package under test."""
    import mosec

    return str(Path(mosec.__file__).resolve().parent.parent)


@pytest.fixture(autouse=True)
def plain_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """No options of the test run's own, nor of its environment, reach the code under test."""
    import os

    monkeypatch.setattr(sys, "argv", ["server.py"])
    for name in [name for name in os.environ if name.startswith("MOSEC_")]:
        monkeypatch.delenv(name)
