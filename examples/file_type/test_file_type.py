"""Types of a few files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("magika", reason="examples/file_type/requirements.txt is not installed")
HERE = Path(__file__).parent


def test_files_of_several_types(
    serve: Callable[..., Any], run_client: Callable[..., str], post: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    files = [HERE / "server.py", HERE / "README.md", HERE / "pipeline.yaml", tmp_path / "empty"]
    with serve(HERE / "server.py", "alone") as service:
        said = run_client(f"{service.url}/file-type", *files).splitlines()
        status, mime, body = post(f"{service.url}/file-type", b"x")
    types = [line.partition(": ")[2].partition(" ")[0] for line in said]
    assert types == ["python", "markdown", "yaml", "empty"]
    assert (status, mime, json.loads(body)["type"]) == (200, "application/json", "txt"), "short ones are told by rules"
