"""The service with a tiny pipeline of random weights: every part of a real one, and nothing to download."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
MISSING = [name for name in ("torch", "diffusers", "transformers", "msgpack") if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(
        f"not installed: {', '.join(MISSING)} (pip install -r examples/stable_diffusion/requirements-torch.txt)",
        allow_module_level=True,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    subprocess.run([sys.executable, HERE / "tiny.py", folder], check=True, timeout=300)
    return folder


@pytest.mark.parametrize("place", ["alone", "cluster with env"])
def test_each_prompt_becomes_a_jpeg(
    place: str,
    model: Path,
    serve: Callable[..., Any],
    client: ModuleType,
    run_client: Callable[..., str],
    together: Callable[..., list[Any]],
    tmp_path: Path,
) -> None:
    env = {"STABLE_DIFFUSION_MODEL": str(model), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with serve(HERE / "server.py", place, ["--timeout", "120000"], env) as service:
        assert "warmup successfully" in service.output()
        prompts = [f"a picture of {thing}" for thing in ("a cat", "a dog", "a tree", "the sea", "a city", "a star")]
        pictures = together(lambda prompt: client.ask(service.url, prompt), prompts)
        assert all(picture.startswith(b"\xff\xd8\xff") for picture in pictures)
        assert len(set(pictures)) == len(prompts), "each has a picture of its own"
        batches = [int(count) for count in re.findall(r"drawing (\d) prompts", service.output())]
        assert batches[0] == 4 and sum(batches[1:]) == len(prompts) and max(batches) <= 4
        output = tmp_path / "picture.jpg"
        assert run_client(service.url, "--output", output).startswith(f"{output}: ")
        assert output.read_bytes().startswith(b"\xff\xd8\xff")
