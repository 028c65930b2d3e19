"""Compares servers that run the same workers: requests per second, latency, and CPU time for each request.

Each round starts every server afresh, one after another, so that what changes on the machine in the meantime changes
for all. Load comes from wrk over kept-alive HTTP/1.1 connections on loopback. CPU time is that of all processes of the
server, which on a small machine says more than throughput, as wrk needs cores of its own. See README.md.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERVICES = ("echo", "batch", "large")
BASE = "mosec"
# Bodies of the service `large`: a picture, or an array of a million numbers.
LARGE_BYTES = 4 << 20
# What only this project offers, measured beside what it does otherwise.
VARIANTS = {"batch": ("adaptive", "BATCHING=adaptive"), "large": ("zero copy", "ZERO_COPY=1")}
TICKS = os.sysconf("SC_CLK_TCK")
START_LIMIT = 60.0
STOP_LIMIT = 15.0


@dataclass
class Sample:
    """One server under one load. Latencies in ms, CPU in us for each request."""

    rate: float
    p50: float
    p99: float
    cpu: float
    failed: int


def main() -> int:
    values = arguments()
    samples: dict[tuple[str, int, str], list[Sample]] = {}
    for number in range(values.rounds):
        for service in values.services:
            servers = commands(values, service)
            names = list(servers)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                with Running(servers[name], service) as running:
                    check(running.url, service)
                    for connections in values.connections:
                        load(running, connections, values.warm_up)
                        sample = measure(running, connections, values.seconds)
                        samples.setdefault((service, connections, name), []).append(sample)
                        print(f"round {number + 1} {service} c={connections} {name}: {sample}", file=sys.stderr)
    print(table(samples))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mosec", metavar="PYTHON", help="interpreter that has PyPI's mosec")
    parser.add_argument("--embedded", metavar="PYTHON", help="interpreter that has this project's package")
    parser.add_argument(
        "--cluster",
        metavar="COMMAND",
        help="command that serves {script} on {port} by separate processes, until SIGTERM",
    )
    parser.add_argument("--services", nargs="+", choices=SERVICES, default=list(SERVICES))
    parser.add_argument("--connections", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    values = parser.parse_args()
    if not (values.mosec or values.embedded or values.cluster):
        parser.error("name at least one of --mosec, --embedded and --cluster")
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed (Debian: apt-get install wrk)")
    return values


def commands(values: argparse.Namespace, service: str) -> dict[str, str]:
    """The servers to compare, as commands with {script} and {port}."""
    found = {}
    if values.mosec:
        found[BASE] = shlex.quote(values.mosec) + " {script} --port {port}"
    if values.embedded:
        found["embedded"] = shlex.quote(values.embedded) + " {script} --port {port}"
        if service in VARIANTS:
            name, variable = VARIANTS[service]
            found[f"embedded, {name}"] = f"env {variable} {found['embedded']}"
    if values.cluster:
        found["cluster"] = values.cluster
    return found


class Running:
    """A server while it runs, in a session of its own by which its processes are known."""

    def __init__(self, command: str, service: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        script = HERE / "services" / f"{service}.py"
        self._command = [part.format(script=script, port=port) for part in shlex.split(command)]
        self.url = f"http://127.0.0.1:{port}/inference"
        self.body_bytes = LARGE_BYTES if service == "large" else 0

    def __enter__(self) -> "Running":
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        limit = time.monotonic() + START_LIMIT
        while not answers(self.url):
            if self._process.poll() is not None or time.monotonic() > limit:
                self._end()
                self._log.seek(0)
                said = self._log.read().decode(errors="replace")[-4000:]
                raise SystemExit(f"{shlex.join(self._command)} did not start:\n{said}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._log.close()

    def cpu_seconds(self) -> float:
        """User and system time of all processes of the server that live."""
        return sum(stat.cpu for stat in self._processes().values())

    def _processes(self) -> dict[int, "Stat"]:
        return {pid: stat for pid, stat in process_stats().items() if stat.session == self._process.pid}

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            print(f"{shlex.join(self._command)} did not stop in {STOP_LIMIT} s", file=sys.stderr)
        for pid in self._processes():
            os.kill(pid, signal.SIGKILL)
        self._process.wait()


@dataclass
class Stat:
    session: int
    cpu: float


def process_stats() -> dict[int, Stat]:
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text()
        except OSError:  # it has ended
            continue
        # The name in parentheses may hold anything; what follows it starts with field 3 of proc(5).
        fields = text.rpartition(")")[2].split()
        found[int(folder.name)] = Stat(session=int(fields[3]), cpu=(int(fields[11]) + int(fields[12])) / TICKS)
    return found


def answers(url: str) -> bool:
    try:
        return post(url, b"0") is not None
    except OSError:
        return False


def check(url: str, service: str) -> None:
    """Sends distinct requests: a server that mixes up answers is not worth measuring."""
    for number in range(200):
        sent: object = {"x": number, "text": f"ä{number}"}
        body = json.dumps(sent).encode()
        if service == "large":
            body += b" " * (number * 2000)
            sent = [len(body), body[-1]]
        found = post(url, body)
        if found != sent:
            raise SystemExit(f"{url} answered {found} to {body[:80]!r}")


def post(url: str, body: bytes) -> object:
    with urllib.request.urlopen(url, body, timeout=10) as response:
        return json.load(response)


def measure(running: Running, connections: int, seconds: float) -> Sample:
    before = running.cpu_seconds()
    result = load(running, connections, seconds)
    used = running.cpu_seconds() - before
    good = result["requests"] - result["bad_status"]
    return Sample(
        rate=good / (result["micros"] / 1e6),
        p50=result["p50"] / 1e3,
        p99=result["p99"] / 1e3,
        cpu=used * 1e6 / max(1, result["requests"]),
        failed=result["bad_status"] + result["broken"],
    )


def load(running: Running, connections: int, seconds: float) -> dict[str, float]:
    script = str(HERE / "post.lua")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", script, running.url]
    env = os.environ | {"BODY_BYTES": str(running.body_bytes)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def table(samples: dict[tuple[str, int, str], list[Sample]]) -> str:
    """Medians of the rounds, and in brackets the ratio to MOSEC's."""
    lines = [
        "| service | connections | server | requests/s | p50 ms | p99 ms | CPU us/request | failed |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for (service, connections, name), taken in sorted(samples.items(), key=lambda pair: pair[0][:2]):
        base = samples.get((service, connections, BASE))
        cells = []
        for field, form in (("rate", "{:,.0f}"), ("p50", "{:.2f}"), ("p99", "{:.2f}"), ("cpu", "{:.1f}")):
            value = median(taken, field)
            cell = form.format(value)
            if base is not None and name != BASE:
                cell += f" ({value / median(base, field):.2f}x)"
            cells.append(cell)
        failed = sum(sample.failed for sample in taken)
        lines.append(f"| {service} | {connections} | {name} | {' | '.join(cells)} | {failed} |")
    return "\n".join(lines)


def median(samples: list[Sample], field: str) -> float:
    return statistics.median(getattr(sample, field) for sample in samples)


if __name__ == "__main__":
    sys.exit(main())
