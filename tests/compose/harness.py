"""A cluster of docker-compose.yml under test: the engine, mosectl on the host, and clients that keep asking."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
PROJECT = "mosec-test"
GATEWAYS = ("http://127.0.0.1:8000", "http://127.0.0.1:8001")
MEMBERS = "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"
PROMETHEUS = "http://127.0.0.1:9090"
# The command that is tested: `docker-compose` 1.29 or later, or `docker compose`.
COMPOSE = tuple(os.environ.get("MOSEC_TEST_COMPOSE", "docker-compose").split())
# Those that the others are started for. Grafana is left out: its image cannot be had without a registry.
WANTED = ("gateway-1", "gateway-2", "agent-1", "agent-2", "prometheus")
# Services that end when they have done their part.
ONCE = {"init", "tokens"}
# As long as nothing else is said, in seconds: what an operator would wait before looking into it.
PATIENCE = 60

T = TypeVar("T")


def docker(*args: str) -> str:
    return subprocess.run(["docker", *args], check=True, capture_output=True, text=True).stdout


def logs(container: str) -> str:
    """What a container wrote to either of its outputs."""
    return subprocess.run(
        ["docker", "logs", container], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout


def has_engine() -> bool:
    commands = (["docker", "info"], [*COMPOSE, "version"])
    return all(shutil.which(one[0]) and not subprocess.run(one, capture_output=True).returncode for one in commands)


def compose(*args: str) -> str:
    """Runs docker-compose, which has to end well; its standard output."""
    command = [*COMPOSE, "--project-name", PROJECT, *args]
    # Services of OCR need OpenCV's libraries.
    own = {"MOSEC_ARTIFACTS": "prebuilt", "MOSEC_AGENT_PACKAGES": "libgl1 libglib2.0-0"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
    return done.stdout


def containers() -> dict[str, dict[str, Any]]:
    """What the engine says of each service's container."""
    ids = compose("ps", "--all", "-q").split()
    found = json.loads(docker("inspect", *ids)) if ids else []
    return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in found}


def container(service: str) -> str:
    return compose("ps", "--all", "-q", service).strip()


def is_well(service: str, state: dict[str, Any]) -> bool:
    """Whether a service is as it should be, by the state of its container."""
    if service in ONCE:
        return state["Status"] == "exited" and state["ExitCode"] == 0
    return state["Status"] == "running" and state.get("Health", {"Status": "healthy"})["Status"] == "healthy"


def left_behind() -> list[str]:
    """Containers, volumes and networks of the project."""
    kinds = (("container", "--all"), ("volume",), ("network",))
    label = f"label=com.docker.compose.project={PROJECT}"
    return [one for kind, *more in kinds for one in docker(kind, "ls", "--quiet", "--filter", label, *more).split()]


def eventually(what: str, condition: Callable[[], T], limit: float = PATIENCE) -> T:
    """Waits until the condition is met; what it gave then."""
    end = monotonic() + limit
    while not (met := condition()):
        if monotonic() > end:
            logs = compose("logs", "--no-color", "--tail", "10")
            raise AssertionError(f"{what}: not within {limit:.0f} s\n{compose('ps')}\n{logs}")
        sleep(0.1)
    return met


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


class Host:
    """Somebody with mosectl on the host of the cluster."""

    def __init__(self, home: Path) -> None:
        self.environment = {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def log_in(self) -> None:
        token = compose("run", "--rm", "-T", "mosectl", "token", "create", "--role", "deployer", "--name", "ann")
        self.mosectl("login", "--control-plane", MEMBERS, "--token", token.strip())

    def start(self, *args: str) -> subprocess.Popen[str]:
        command = ["mosectl", *args]
        return subprocess.Popen(
            command, env=self.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def mosectl(self, *args: str) -> str:
        """A command that has to end well; what it said."""
        process = self.start(*args)
        said, _ = process.communicate(timeout=180)
        assert process.returncode == 0, f"mosectl {' '.join(args)}: {said}"
        return said

    def status(self) -> dict[str, Any]:
        """The status, empty while no leader gives one."""
        process = self.start("status", "--output", "json")
        said, _ = process.communicate(timeout=30)
        return json.loads(said) if process.returncode == 0 else {}


@dataclass(frozen=True)
class Question:
    """What is posted again and again, and which answers are right."""

    path: str
    body: bytes
    is_right: Callable[[bytes], bool]
    # Seconds between an answer and the next request: the load leaves the machine room to start workers anew.
    pause: float


class Client:
    """Asks one gateway one question again and again."""

    def __init__(self, gateway: str, question: Question) -> None:
        self.gateway, self.question = gateway, question
        self.ended: Counter[str] = Counter()
        self.longest = 0.0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.stop.is_set():
            began = monotonic()
            self.ended[self.ask()] += 1
            self.longest = max(self.longest, monotonic() - began)
            self.stop.wait(self.question.pause)

    def ask(self) -> str:
        """How one request ended: `right`, or else how."""
        url, question = self.gateway + self.question.path, self.question
        try:
            with urllib.request.urlopen(url, question.body, timeout=60) as answer:
                return "right" if question.is_right(answer.read()) else "wrong"
        except (OSError, http.client.HTTPException) as error:
            return str(error)


class Clients:
    """Clients of both gateways, one for each question."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self.of = {gateway: [Client(gateway, question) for question in questions] for gateway in GATEWAYS}

    def ended(self, gateway: str) -> Counter[str]:
        """How the requests at a gateway ended."""
        return sum((client.ended for client in self.of[gateway]), Counter())

    def lost(self, gateway: str) -> dict[str, int]:
        return {how: count for how, count in self.ended(gateway).items() if how != "right"}

    def longest(self, gateway: str) -> float:
        return max(client.longest for client in self.of[gateway])

    def all_right(self) -> bool:
        """Asks each question at each gateway once."""
        return all(client.ask() == "right" for clients in self.of.values() for client in clients)

    @contextmanager
    def asking(self) -> Iterator["Clients"]:
        everyone = [client for clients in self.of.values() for client in clients]
        for client in everyone:
            client.thread.start()
        try:
            yield self
        finally:
            for client in everyone:
                client.stop.set()
            for client in everyone:
                client.thread.join()
