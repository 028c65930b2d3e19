"""The cluster of docker-compose.yml from nothing to nothing: deployed to, asked, struck, watched and restarted.

The tests build on one another, in this order.
"""

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlencode

import pytest
from harness import (
    GATEWAYS,
    PROJECT,
    PROMETHEUS,
    ROOT,
    WANTED,
    Clients,
    Host,
    Question,
    compose,
    container,
    containers,
    docker,
    eventually,
    get,
    is_well,
    logs,
)

# What `docker-compose up` may take until everything is healthy, in seconds.
HEALTHY_WITHIN = 60
# What the status may take to tell what was struck.
TOLD_WITHIN = 5
SERVICES = {"init", "tokens", "control-1", "control-2", "control-3", *WANTED}
STAGES = ("decode", "find", "recognise")


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Question:
    folder = tmp_path_factory.mktemp("pictures")
    subprocess.run([sys.executable, ROOT / "examples/ocr/pictures.py", folder], check=True, capture_output=True)
    name = "004.png"
    truth = json.loads((folder / "truth.json").read_text())[name]["lines"]

    def is_read(answer: bytes) -> bool:
        return [line["text"] for line in json.loads(answer)["lines"]] == truth

    return Question("/ocr", (folder / name).read_bytes(), is_read, pause=0.2)


ECHO = Question("/inference", b'{"hello": 1}', lambda answer: json.loads(answer) == {"hello": 1}, pause=0.02)


@pytest.fixture
def clients(picture: Question) -> Clients:
    return Clients([picture, ECHO, ECHO])


def all_well() -> bool:
    found = containers()
    return set(found) == SERVICES and all(is_well(service, one["State"]) for service, one in found.items())


def start_time(one: dict[str, Any]) -> float:
    """Seconds from the start of a container to the line with which its program says that it runs."""
    began = datetime.fromisoformat(one["State"]["StartedAt"][:26]).replace(tzinfo=UTC)
    lines = logs(one["Id"]).splitlines()
    told = next(json.loads(line) for line in lines if " is running" in line)
    return (datetime.fromisoformat(told["timestamp"]) - began).total_seconds()


def test_everything_is_healthy_within_a_minute(started: float, measured: list[str]) -> None:
    eventually("all services are healthy", all_well, started + HEALTHY_WITHIN - monotonic())
    measured.append(f"healthy {monotonic() - started:.0f} s after `up`")
    found = containers()
    for name, image in {one["Config"]["Image"]: one["Image"] for one in found.values()}.items():
        size = json.loads(docker("image", "inspect", image))[0]["Size"]
        measured.append(f"image {name}: {size / 1e6:.0f} MB")
    for service in sorted(SERVICES - {"init", "tokens", "prometheus"}):
        measured.append(f"{service} is running {start_time(found[service]):.1f} s after its container's start")

    def all_scraped() -> bool:
        targets = json.loads(get(f"{PROMETHEUS}/api/v1/targets"))["data"]["activeTargets"]
        return len(targets) == 8 and all(target["health"] == "up" for target in targets)

    eventually("Prometheus scrapes every process", all_scraped)


def test_a_picture_is_read_at_both_gateways(host: Host, clients: Clients) -> None:
    # Without Python on the host, and from there.
    assert " is serving\n" in compose("run", "--rm", "-T", "mosectl", "deploy", "echo")
    assert " is serving\n" in host.mosectl("deploy", "examples/ocr")
    eventually("both gateways answer right", clients.all_right, 10)
    # Nothing may stand still when one node is lost.
    host.mosectl("scale", "ocr", *(f"{stage}=2" for stage in STAGES))


def are_up(status: dict[str, Any]) -> bool:
    """Whether all members, nodes and gateways are there."""
    there = [one for kind in ("members", "nodes", "gateways") for one in status.get(kind, ())]
    return len(there) == 7 and all(one["health"] == "up" for one in there)


def is_whole(status: dict[str, Any]) -> bool:
    """Whether all are there, and all replicas of the only revision that is left of each pipeline are ready."""
    revisions = status.get("pipelines", ())
    return (
        are_up(status)
        and sorted(one["name"] for one in revisions) == ["echo", "ocr"]
        and all(one["phase"] == "serving" for one in revisions)
        and all(stage["ready"] == stage["replicas"] == 2 for one in revisions for stage in one["stages"])
    )


def revision_of_ocr(status: dict[str, Any]) -> int:
    return next(one["revision"] for one in status["pipelines"] if one["name"] == "ocr")


def is_down(service: str) -> bool:
    """Whether Prometheus finds the service away."""
    query = urlencode({"query": f'up{{instance="{service}"}} == 0'})
    return bool(json.loads(get(f"{PROMETHEUS}/api/v1/query?{query}"))["data"]["result"])


class Fault:
    """Something that befalls one service."""

    service: str
    # Whether clients of the first gateway notice, as it is the one that is struck.
    takes_gateway = False

    def strike(self, status: dict[str, Any]) -> None:
        docker("kill", container(self.service))

    def is_told(self, status: dict[str, Any]) -> bool:
        raise NotImplementedError

    def heal(self) -> None:
        docker("start", container(self.service))


class LeaderKilled(Fault):
    def strike(self, status: dict[str, Any]) -> None:
        self.leader = status["leader"]
        self.service = f"control-{self.leader}"
        super().strike(status)

    def is_told(self, status: dict[str, Any]) -> bool:
        lost = [member["id"] for member in status.get("members", ()) if member["health"] == "lost"]
        return lost == [self.leader] and status["leader"] not in (None, self.leader)


class AgentKilled(Fault):
    service = "agent-1"

    def is_told(self, status: dict[str, Any]) -> bool:
        nodes = {node["name"]: node["health"] for node in status.get("nodes", ())}
        workers = [worker for one in status.get("pipelines", ()) for worker in one["replicas"]]
        ready = {worker["node"] for worker in workers if worker["state"] == "ready"}
        return nodes.get(self.service) in ("suspect", "down") and nodes["agent-2"] == "up" and self.service not in ready


class AgentCutOff(AgentKilled):
    network = f"{PROJECT}_default"

    def strike(self, status: dict[str, Any]) -> None:
        docker("network", "disconnect", self.network, container(self.service))

    def heal(self) -> None:
        docker("network", "connect", "--alias", self.service, self.network, container(self.service))


class GatewayKilled(Fault):
    service = "gateway-1"
    takes_gateway = True

    def is_told(self, status: dict[str, Any]) -> bool:
        health = {gateway["name"]: gateway["health"] for gateway in status.get("gateways", ())}
        return health == {self.service: "lost", "gateway-2": "up"}


FAULTS = (LeaderKilled, AgentKilled, GatewayKilled, AgentCutOff)


def updated(folder: Path, number: int) -> Path:
    """A next revision of the example: two replicas of each stage, and queues of another length."""
    shutil.copytree(ROOT / "examples/ocr", folder, dirs_exist_ok=True)
    manifest = folder / "pipeline.yaml"
    text = manifest.read_text().replace("replicas: 1\n", "replicas: 2\n")
    manifest.write_text(text.replace("timeout: 30s\n", f"timeout: 30s\ncapacity: {1000 + number}\n", 1))
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_during_an_update_loses_no_request(
    host: Host, clients: Clients, tmp_path: Path, measured: list[str], fault: type[Fault]
) -> None:
    before = eventually("everything is ready", lambda: (status := host.status()) and is_whole(status) and status)
    befallen = fault()
    with clients.asking():
        update = host.start("deploy", str(updated(tmp_path, FAULTS.index(fault))))
        eventually("an update is under way", lambda: len(host.status().get("pipelines", ())) > 2)
        befallen.strike(before)
        struck = monotonic()
        eventually("the status tells it", lambda: befallen.is_told(host.status()), TOLD_WITHIN)
        told = monotonic() - struck
        eventually("Prometheus tells it", lambda: is_down(befallen.service))
        said, _ = update.communicate(timeout=120)
        assert update.returncode == 0, said
        befallen.heal()
        healed = monotonic()
        eventually("everything is ready again", lambda: is_whole(host.status()) and all_well())
        whole = monotonic() - healed
    revisions = f"revision {revision_of_ocr(before)} to {revision_of_ocr(host.status())}"
    first, second = GATEWAYS
    lost = {gateway: sum(clients.lost(gateway).values()) for gateway in GATEWAYS}
    asked = {gateway: sum(clients.ended(gateway).values()) for gateway in GATEWAYS}
    measured.append(
        f"{fault.__name__} ({befallen.service}): told after {told:.1f} s, whole {whole:.1f} s after it was back,"
        f" {revisions}; of {asked[second]} requests at"
        f" gateway-2 {lost[second]} lost, the longest {clients.longest(second):.1f} s;"
        f" of {asked[first]} at gateway-1 {lost[first]} lost"
    )
    assert clients.lost(second) == {}
    assert befallen.takes_gateway or clients.lost(first) == {}
    assert clients.ended(first)["right"] and clients.ended(second)["right"]


def test_every_query_of_a_dashboard_or_alert_has_an_answer(clients: Clients, measured: list[str]) -> None:
    from queries import run, table

    def ask() -> bool:
        rows[:] = run(PROMETHEUS)
        return all(row.is_ok for row in rows)

    rows: list = []
    with clients.asking():
        try:
            # Rates are over a minute, and there has to be one.
            eventually("all queries have plausible answers", ask, 120)
        finally:
            measured.append(table(rows))


PROCESSES = [
    *((f"control-{number}", 9400) for number in (1, 2, 3)),
    *((f"gateway-{number}", 8000) for number in (1, 2)),
    *((f"agent-{number}", 9443) for number in (1, 2)),
]


@pytest.mark.parametrize(("service", "port"), PROCESSES)
def test_the_series_of_a_process_are_as_prometheus_wants_them(
    host: Host, tmp_path: Path, service: str, port: int
) -> None:
    from promtool import promtool

    # The image of agents has Python, which can ask what is not open to the host.
    ask = (
        f"from urllib.request import urlopen; print(urlopen('http://{service}:{port}/metrics').read().decode(), end='')"
    )
    page = compose("exec", "-T", "agent-2", "python3", "-c", ask)
    assert "mosec_build_info" in page
    checked = promtool(tmp_path, "check", "metrics", given=page)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_pipelines_come_back_when_everything_is_restarted(host: Host, clients: Clients, measured: list[str]) -> None:
    compose("restart")
    began = monotonic()
    eventually("both gateways answer right again", clients.all_right, HEALTHY_WITHIN)
    measured.append(f"pictures are read {monotonic() - began:.0f} s after a restart of everything")
    eventually("everything is ready again", lambda: is_whole(host.status()) and all_well())
