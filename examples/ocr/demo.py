"""Starts a cluster in one process, deploys the OCR pipeline, reads a picture, and shows where the time went.

Everything it starts ends with it, and everything it writes is in a temporary folder that goes with it.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMANDS = Path(sysconfig.get_path("scripts"))
PARTS = {
    "gateway": "reads the request, routes it, answers",
    "queue": "waits for a batch",
    "link": "QUIC, there and back",
    "agent": "between link and ring",
    "shm": "in the rings, there and back",
    "worker": "decode, forward, encode in Python",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="leave after the first picture")
    parser.add_argument("--port", type=int, default=8000, help="port of the gateway; 0 takes any")
    options = parser.parse_args()
    # Ctrl-C reaches the whole foreground group; the cluster handles its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="mosec-demo-") as folder:
        try:
            return demo(Path(folder), options)
        except KeyboardInterrupt:
            return 0


def demo(folder: Path, options: argparse.Namespace) -> int:
    say("drawing a picture with known text")
    run([sys.executable, HERE / "pictures.py", folder / "pictures", "--count", "1", "--seed", "7"])
    name, truth = first_picture(folder / "pictures")
    say("starting the cluster: control plane, gateway and two node agents, linked by QUIC")
    # `mosectl` finds the cluster through this folder, whatever other cluster this user has.
    env = os.environ | {"XDG_RUNTIME_DIR": str(folder)}
    cluster = subprocess.Popen(
        [COMMANDS / "mosectl", "up", "--port", str(options.port), "--agents", "2", "--data", folder / "data"],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        # Not in the foreground group: it is told to stop below, once, and in order.
        start_new_session=True,
    )
    try:
        address = wait_for_address(cluster)
        say("deploying examples/ocr/pipeline.yaml")
        run([COMMANDS / "mosectl", "deploy", HERE / "pipeline.yaml"], env)
        show(address, name, truth)
        hint(address, folder)
        if options.once:
            return 0
        say("running until Ctrl-C")
        return cluster.wait()
    finally:
        say("stopping")
        if cluster.poll() is None:
            cluster.send_signal(signal.SIGTERM)
        try:
            cluster.wait(timeout=40)
        except subprocess.TimeoutExpired:
            cluster.kill()
            cluster.wait()


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def run(command: list[str | Path], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, check=False, env=env)
    if done.returncode != 0:
        sys.exit(f"{Path(command[0]).name} failed with code {done.returncode}")


def first_picture(folder: Path) -> tuple[Path, list[str]]:
    truth = json.loads((folder / "truth.json").read_text())
    name, lines = next(iter(truth.items()))
    return folder / name, lines["lines"] if isinstance(lines, dict) else lines


def wait_for_address(cluster: subprocess.Popen) -> str:
    """The gateway's address, from the line that says the cluster is ready."""
    assert cluster.stdout is not None
    for line in cluster.stdout:
        found = re.search(r"http://\S+", line)
        if found:
            return found.group().rstrip("/")
    sys.exit(f"the cluster ended with code {cluster.wait()}")


def post(address: str, picture: Path) -> tuple[dict, str]:
    request = urllib.request.Request(f"{address}/ocr", picture.read_bytes(), {"mosec-trace": "1"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response), response.headers["server-timing"]


def show(address: str, picture: Path, truth: list[str]) -> None:
    post(address, picture)  # the first run of a model is slower than any other
    answer, timing = post(address, picture)
    print("\nthe picture says:")
    for line in answer["lines"]:
        print(f"    {line['text']}    ({line['confidence']:.2f})")
    print("it was drawn with:")
    for line in truth:
        print(f"    {line}")
    print("\nwhere the time went:")
    print_timing(timing)


def print_timing(timing: str) -> None:
    """Prints a `server-timing` header: one row for each part and stage, and their sum."""
    entries = [parse_entry(entry) for entry in timing.split(", ")]
    total = next(millis for name, _, millis in entries if name == "total")
    rows = [entry for entry in entries if entry[0] != "total"]
    for name, stage, millis in rows:
        part = name.split("-")[0]
        print(f"    {part:8} {stage:10} {millis:9.3f} ms   {PARTS.get(part, '')}")
    print(f"    {'sum':19} {sum(millis for *_, millis in rows):9.3f} ms")
    print(f"    {'total, measured':19} {total:9.3f} ms")


def parse_entry(entry: str) -> tuple[str, str, float]:
    name, *parameters = entry.split(";")
    values = dict(parameter.split("=", 1) for parameter in parameters)
    return name, values.get("desc", "").strip('"'), float(values["dur"])


def hint(address: str, folder: Path) -> None:
    print("\nsend a picture of your own:")
    print(f"    curl --data-binary @picture.png {address}/ocr")
    print("    add -H 'mosec-trace: 1' -i to see where its time goes")
    print("see what runs:")
    print(f"    XDG_RUNTIME_DIR={folder} {COMMANDS / 'mosectl'} status\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
