"""What happens where a tool is missing."""

import subprocess
import sys
from pathlib import Path

import promtool
import pytest
from lacking import MUST

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def without_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(promtool, "UNPACKED", tmp_path)
    monkeypatch.delenv(MUST, raising=False)


def test_rules_are_skipped_without_promtool() -> None:
    with pytest.raises(pytest.skip.Exception, match="no promtool"):
        promtool.found()


def test_rules_fail_without_promtool_where_everything_has_to_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MUST, "1")
    with pytest.raises(pytest.fail.Exception, match=f"no promtool.*{MUST}"):
        promtool.found()


def outcome_of_types() -> str:
    """The last line of the tests that need npm."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_schema.py"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.splitlines()[-1]


def test_types_are_skipped_without_npm() -> None:
    said = outcome_of_types()
    assert "skipped" in said and "error" not in said and "passed" not in said, said


def test_types_fail_without_npm_where_everything_has_to_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MUST, "1")
    said = outcome_of_types()
    assert "error" in said and "skipped" not in said and "passed" not in said, said
