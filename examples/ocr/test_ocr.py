"""Reads a few drawn pictures. `check.py` measures more of them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rapidocr_onnxruntime", reason="examples/ocr/requirements.txt is not installed")
HERE = Path(__file__).parent


def run(script: str, *arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, HERE / script, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_drawn_pictures_are_read(
    serve: Callable[..., Any], run_client: Callable[..., str], post: Callable[..., Any], tmp_path: Path
) -> None:
    run("pictures.py", tmp_path / "pictures", "--count", "12", "--seed", "7")
    with serve(HERE / "server.py", "alone", ["--timeout", "60000"]) as service:
        url = f"{service.url}/ocr"
        # 96% of the lines of 120 such pictures are exact, nearly all others but for spaces.
        run("check.py", tmp_path / "pictures", "--url", url, "--least", "0.85")
        assert run_client(url, tmp_path / "pictures" / "001.png").strip()
        assert post(url, b"hello")[0::2] == (
            422,
            b"request validation error: the body is not a PNG or JPEG picture (5 bytes)",
        )
