"""The cluster of docker-compose.yml: from nothing to an answer at both gateways, and back to nothing."""

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = "mosec-test"
GATEWAYS = ("http://127.0.0.1:8000", "http://127.0.0.1:8001")
# What `docker-compose up` may take until everything is healthy, in seconds.
HEALTHY_WITHIN = 60
# Everything but the services of profiles.
SERVICES = {
    *("init", "tokens", "control-1", "control-2", "control-3"),
    *("gateway-1", "gateway-2", "agent-1", "agent-2", "prometheus"),
}


def docker(*args: str) -> str:
    return subprocess.run(["docker", *args], check=True, capture_output=True, text=True).stdout


def compose(*args: str) -> str:
    """Runs docker-compose, which has to end well; its standard output."""
    command = ["docker-compose", "--project-name", PROJECT, *args]
    environment = {**os.environ, "MOSEC_ARTIFACTS": "prebuilt"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
    return done.stdout


def has_engine() -> bool:
    if not (shutil.which("docker") and shutil.which("docker-compose")):
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def states() -> dict[str, dict]:
    """Of each service, what the engine says of its container."""
    ids = compose("ps", "-q").split()
    found = json.loads(docker("inspect", *ids)) if ids else []
    return {one["Config"]["Labels"]["com.docker.compose.service"]: one["State"] for one in found}


def is_well(service: str, state: dict) -> bool:
    if service in ("init", "tokens"):
        return state["Status"] == "exited" and state["ExitCode"] == 0
    return state["Status"] == "running" and state.get("Health", {"Status": "healthy"})["Status"] == "healthy"


def post(url: str, body: object) -> object:
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def eventually(what: str, condition, limit: float):
    end = monotonic() + limit
    while not (met := condition()):
        assert monotonic() < end, f"{what}: not within {limit} s\n{compose('ps')}\n{compose('logs', '--tail', '20')}"
        sleep(0.2)
    return met


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    if not has_engine():
        if os.environ.get("MOSEC_TEST_MUST_DOCKER"):
            pytest.fail("no Docker engine answers")
        pytest.skip("no Docker engine answers")
    compose("down", "--volumes")
    compose("build")
    try:
        compose("up", "--detach")
        yield
    finally:
        compose("down", "--volumes")
    left = [
        docker(kind, "ls", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}", *more)
        for kind, *more in (("container", "--all"), ("volume",), ("network",))
    ]
    assert left == ["", "", ""], "nothing is left"


def test_everything_is_healthy_and_scraped(cluster: None) -> None:
    def all_well() -> bool:
        found = states()
        return set(found) == SERVICES and all(is_well(*item) for item in found.items())

    eventually("all services are healthy", all_well, HEALTHY_WITHIN)

    def all_up() -> bool:
        with urllib.request.urlopen("http://127.0.0.1:9090/api/v1/targets", timeout=5) as answer:
            targets = json.load(answer)["data"]["activeTargets"]
        return len(targets) == 8 and all(target["health"] == "up" for target in targets)

    eventually("Prometheus scrapes every process", all_up, 30)


def test_a_service_is_deployed_and_survives_a_restart_of_everything(cluster: None) -> None:
    assert " is serving\n" in compose("run", "--rm", "-T", "mosectl", "deploy", "echo/server.py")

    def both_answer() -> bool:
        try:
            return all(post(f"{gateway}/inference", {"hello": 1}) == {"hello": 1} for gateway in GATEWAYS)
        except OSError:
            return False

    eventually("both gateways answer", both_answer, 20)
    compose("restart")
    eventually("both gateways answer again", both_answer, HEALTHY_WITHIN)
    status = json.loads(compose("run", "--rm", "-T", "mosectl", "status", "--output", "json"))
    assert [node["health"] for node in status["nodes"]] == ["up", "up"]
