"""Start, readiness, shutdown, and what becomes of processes, ports and folders."""

import itertools
import json
import os
import signal
import socket
import tempfile

from harness import ABSENT, Difference, Run, case
from harness.service import Service


def port_is_free(service: Service) -> bool:
    """Waits until somebody else could listen on the port."""

    def can_bind() -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", service.port))
            except OSError:
                return False
            return True

    return service.until(can_bind)


@case()
def test_readiness(run: Run) -> None:
    """The port opens when every stage has warmed up, not before."""
    with run.serve("lifecycle.py", wait=False) as service:
        run.see("init", service.notes("init", 1), spec=["0"])
        run.see("while loading", service.get("/").status, spec="refused")
        service.release("may load")
        run.see("warm-up", service.notes("warm", 1), spec=["Slow_1 1"])
        run.see("while warming up", service.get("/").status, spec="refused")
        service.release("may warm up")
        service.ready()
        run.see("ready", service.post(b"1").short(), spec="200 1")


@case()
def test_examples(run: Run) -> None:
    """Which examples are run before readiness."""
    with run.serve("lifecycle.py", "--what", "examples") as service:
        run.see("at readiness", sorted(service.note("examples").splitlines()))
        run.see("goes on", service.post(b"1").short(), spec="200 1")


@case()
def test_clean_end(run: Run) -> None:
    """SIGTERM and SIGINT: exit code 0, nothing left behind."""
    for number in (signal.SIGTERM, signal.SIGINT):
        with run.serve("actor.py") as service:
            run.see(f"{number.name} / ready", service.post(b"1").status, spec=200)
            service.signal(number)
            run.see(f"{number.name} / port", port_is_free(service), spec=True)
            run.see(f"{number.name} / exit code", service.exit_code(), spec=0)
            run.see(f"{number.name} / processes", service.until(lambda s=service: not s.family()), spec=True)
    with run.serve("lifecycle.py", "--what", "process") as service:
        service.stop()
        run.see("run() returns", service.out.splitlines(), spec=["run() has returned"])


BACK_SOON = "announced: a refusal that will pass says when to try again"


@case(
    differs=[
        Difference("GET / / header retry-after", ABSENT, "1", BACK_SOON),
        Difference("POST / header retry-after", ABSENT, "1", BACK_SOON),
        Difference("counted", False, True, "D20: every answer of a route is counted"),
    ],
)
def test_drain(run: Run) -> None:
    """What was accepted is answered; what comes later is refused; a second signal changes nothing."""
    with run.serve("actor.py", "--timeout", "9000") as service:
        running = service.later(service.post, b'{"wait for": "go", "note": "x", "value": 1}')
        service.notes("started", 1)
        service.signal()
        service.until(lambda: service.get("/").status != 200)
        run.see("GET /", service.get("/"), spec="503 gracefully shutting down")
        run.see("POST", service.post(b"1"), spec="503 gracefully shutting down")
        run.see("POST, empty", service.post(b"").short(), spec="503 gracefully shutting down")
        run.see("description", service.get("/openapi/metadata.json").status, spec=200)
        run.see("unknown path", service.post(b"1", "/other").status, spec=404)
        run.see("GET", service.get("/inference").status, spec=405)
        run.see("metrics", service.get("/metrics").status, spec=200)
        run.see("counted", 'code="503"' in service.get("/metrics").body.decode(), spec=False)
        service.signal()
        service.signal(signal.SIGINT)
        run.see("GET / after more signals", service.get("/").status, spec=503)
        service.release("go")
        run.see("accepted one", running.result(), spec={"status": 200})
        run.see("exit code", service.exit_code(), spec=0)
        run.see("port", port_is_free(service), spec=True)


@case()
def test_drain_limit(run: Run) -> None:
    """The drain lasts no longer than `--timeout`."""
    with run.serve("actor.py", "--timeout", "1000") as service:
        running = service.later(service.post, b'{"wait for": "never", "note": "x"}')
        service.notes("started", 1)
        service.signal()
        run.see("answer", running.result().status)
        run.see("exit code", service.exit_code(), spec=0)
        run.see("processes", service.until(lambda: not service.family()), spec=True)


@case()
def test_group_signal(run: Run) -> None:
    """A ^C at the terminal reaches all processes."""
    with run.serve("actor.py", "--workers", "2") as service:
        running = service.later(service.post, b'{"wait for": "go", "note": "x"}')
        service.notes("started", 1)
        os.killpg(service.process.pid, signal.SIGINT)
        service.until(lambda: service.get("/").status != 200)
        service.release("go")
        run.see("accepted one", running.result().status, spec=200)
        run.see("exit code", service.exit_code(), spec=0)


@case(differs=[Difference("left over", True, False, "D11: workers end with the process that started them")])
def test_killed(run: Run) -> None:
    """SIGKILL of the main process."""
    # Nobody removes the work folder then, so that it lies where the test's own are.
    with (
        tempfile.TemporaryDirectory() as folder,
        run.serve("actor.py", "--path", os.path.join(folder, "work")) as service,
    ):
        service.signal(signal.SIGKILL)
        run.see("exit code", service.exit_code(), spec=-9)
        run.see("left over", not service.until(lambda: not service.family(), patience=4), spec=True)


@case(
    differs=[
        Difference("refuses / exit code", 0, 1, "D2: not zero where the service could not start"),
        Difference("leaves / exit code", 0, 1, "D2: not zero where the service could not start"),
        Difference("refuses / starts", 1, 3, "D4: three starts that fail in a row are given up"),
    ]
)
def test_cannot_start(run: Run) -> None:
    """A worker whose constructor fails."""
    for what in ("refuses", "leaves"):
        with run.serve("lifecycle.py", "--what", what, wait=False) as service:
            run.see(f"{what} / exit code", service.exit_code(), spec=0)
            run.see(f"{what} / port", service.get("/").status, spec="refused")
            run.see(f"{what} / says why", "no model here" in service.err, spec=what == "refuses")
            run.see(f"{what} / starts", len(service.note("init").split()), spec=int(what == "refuses"))


@case(differs=[Difference("pauses grow", False, True, "D4: what fails again and again is tried less and less often")])
def test_crash_loop(run: Run) -> None:
    """A worker that cannot start, beside one that serves."""
    with run.serve("lifecycle.py", "--what", "loops") as service:
        service.release("may fail")
        service.until(lambda: len(service.note("starts").split()) >= 8, patience=40)
        starts = [float(at) for at in service.note("starts").split()[:8]]
        pauses = [after - before for before, after in itertools.pairwise(starts)]
        # From nothing to 3.2 s on one side, all alike on the other; half of that is left for what the starts take.
        run.see("pauses grow", pauses[-1] - pauses[0] > 1.5, spec=False)
        run.see("the other one", service.post(b"1").short(), spec="200 1")
        run.see("exit code", service.stop(), spec=0)


@case()
def test_one_of_two_cannot_start(run: Run) -> None:
    """A worker that cannot start does not keep the service from starting, where its stage has another one."""
    with run.serve("lifecycle.py", "--what", "halves", wait=False) as service:
        service.until(lambda: len(service.note("starts").split()) >= 4 or service.process.poll() is not None)
        service.release("may load")
        service.until(lambda: service.get("/").status == 200 or service.process.poll() is not None)
        run.see("answer", service.post(b"1").short(), spec="200 1")
        run.see("exit code", service.stop(), spec=0)


@case()
def test_signal_before_readiness(run: Run) -> None:
    """SIGTERM while a worker still loads its model."""
    with run.serve("lifecycle.py", wait=False) as service:
        service.notes("init", 1)
        service.signal()
        run.see("exit code", service.exit_code(), spec=0)
        run.see("processes", service.until(lambda: not service.family()), spec=True)


@case(
    differs=[
        Difference(f"{what} / exit code", 0, 1, "D2: a service that ends because a daemon did says so")
        for what in ("process", "popen")
    ],
)
def test_daemons(run: Run) -> None:
    """A registered daemon that ends takes the service with it."""
    for what in ("process", "popen"):
        with run.serve("lifecycle.py", "--what", what) as service:
            run.see(f"{what} / ready", service.get("/").status, spec=200)
            service.release("daemon may end")
            run.see(f"{what} / exit code", service.exit_code(), spec=0)
            run.see(f"{what} / processes", service.until(lambda service=service: not service.family()), spec=True)


LEAK = "D9: what a stage's environment sets does not stay for the stages after it"


@case(
    differs=[
        Difference(
            method,
            ['[1, "a", "a", ""]', '[2, "b", "b", ""]'],
            ['[1, "a", "a", null]', '[2, "b", "b", null]'],
            LEAK,
        )
        for method in ("spawn", "fork")
    ]
)
def test_env(run: Run) -> None:
    """`env[i]` is that of worker i + 1, and of nobody else."""
    for options in ((), ("--fork",)):
        key = "fork" if options else "spawn"
        with run.serve("lifecycle.py", "--what", "env", *options) as service:
            answers: set[str] = set()
            service.until(lambda answers=answers, service=service: found(service, answers) == 2)
            run.see(key, sorted(answers))


def found(service: Service, answers: set[str]) -> int:
    """Adds what two workers see of their environment, and the stage after them."""
    answers.update(json.dumps(json.loads(answer.body)) for answer in service.together([b"1"] * 2))
    return len(answers)


@case()
def test_work_folder(run: Run) -> None:
    """`--path` is made at the start and gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "work")
        with run.serve("actor.py", "--path", path) as service:
            run.see("ready", service.post(b"1").status, spec=200)
            run.see("exists", os.path.isdir(path), spec=True)
            run.see("exit code", service.stop(), spec=0)
            run.see("exists afterwards", os.path.exists(path), spec=False)
        with run.serve("actor.py", env={"MOSEC_PATH": path}) as service:
            run.see("by the environment", os.path.isdir(path), spec=True)
        with run.serve("actor.py", env={"TMPDIR": folder}) as service:
            run.see("without", [service.post(b"1").status, service.stop()], spec=[200, 0])
            run.see("left over", os.listdir(folder), spec=[])


@case(differs=[Difference("another one / header retry-after", ABSENT, "1", BACK_SOON)])
def test_drain_of_streams(run: Run) -> None:
    """A stream that has begun is sent to its end; no other one begins."""
    with run.serve("sse.py", "--timeout", "9000") as service:
        stream = service.stream(b'[{"send": "1"}, {"wait for": "go"}, {"send": "2"}]')
        stream.until(b"data: 1\n\n")
        service.signal()
        service.until(lambda: service.get("/").status != 200)
        run.see("another one", service.post(b"[]"), spec="503 gracefully shutting down")
        service.release("go")
        run.see("stream", [stream.rest(), stream.response.body.decode()], spec=["complete", "data: 1\n\ndata: 2\n\n"])
        run.see("exit code", service.exit_code(), spec=0)


@case(
    differs=[
        Difference("all of it", False, True, "D6: the limit is one of silence, while draining too"),
        Difference("exit code", "still running", 0, "D5: no worker waits for good to get rid of an event"),
    ]
)
def test_drain_of_a_long_stream(run: Run) -> None:
    """A `forward` that streams for longer than `--timeout`, when SIGTERM comes."""
    with run.serve("sse.py", "--timeout", "2000", "--limit", "60") as service:
        stream = service.stream(json.dumps([{"send": "1"}, {"sleep": 0.2}] * 20).encode())
        stream.until(b"data: 1\n\n")
        service.signal()
        run.see("end", stream.rest(), spec="complete")
        run.see("all of it", stream.response.body.count(b"data: 1\n\n") == 20, spec=False)
        run.see("exit code", service.exit_code(8), spec="still running")


IS_EXAMPLE = "announced: an array is an example as any other"


@case(
    differs=[
        Difference("service", "refused ", "200 1", IS_EXAMPLE),
        Difference("examples", "", "array [1 2]", IS_EXAMPLE),
    ]
)
def test_array_as_example(run: Run) -> None:
    """An example that has no truth value."""
    with run.serve("array_example.py", wait=False) as service:
        service.until(lambda: service.process.poll() is not None or service.get("/").status == 200)
        run.see("service", service.post(b"1").short(), spec="refused ")
        run.see("examples", service.note("examples").split("\n")[0], spec="")


@case()
def test_search_path(run: Run) -> None:
    """Workers find a class where the script has found it."""
    with run.serve("search.py") as service:
        run.see("answer", service.post(b"1"), spec="200 1")


@case()
def test_script_without_a_guard(run: Run) -> None:
    """Workers load the script: what it does at its end, they do as well, and serve all the same."""
    with run.serve("bare.py") as service:
        run.see("answer", service.post(b"1"), spec={"status": 200})
        run.see("exit code", service.stop(), spec=0)
