"""Time limits, full queues, clients that leave, and processes that die."""

import json
import os
import re
import signal
import time
from pathlib import Path

from harness import ANY, Difference, Run, case
from harness.acts import act, serving
from harness.service import Service
from harness.wire import request

LEAK = re.compile(r"mosec timeout error: \[14\]`forward` timeout after 0\.3s: <frame at 0x.*")


@case(
    differs=[
        Difference("worker's limit / body", LEAK, "mosec timeout error: forward timeout after 0.3s", "D15: no path"),
        Difference("worker's limit / header content-length", ANY, "47", "D15: no path"),
    ],
)
def test_time_limits(run: Run) -> None:
    """408, by the worker's limit or the service's."""
    with run.serve("actor.py", "--limit", "0.3", "--timeout", "2000") as service:
        run.see("worker's limit", service.post(act(sleep=5)), spec={"status": 408})
        run.see("worker goes on", service.post(b"1"), spec="200 1")
        run.see("what catches exceptions", service.post(act(sleep_stubbornly=5)).status, spec=408)
        for where in ("decode", "encode"):
            slowly = service.post(json.dumps({f"{where} slowly": 0.6}).encode())
            run.see(f"time to {where}", slowly.status, spec=200)
    with run.serve("actor.py", "--limit", "0.3", "--warm") as service:
        run.see("time to warm up", "warmup successfully" in service.err, spec=True)
    with run.serve("actor.py", "--limit", "5", "--timeout", "500") as service:
        first = service.later(service.post, act(wait_for="go", note="a"))
        service.notes("started", 1)
        second = service.later(service.post, act(note="b"))
        run.see("service's limit", first.result(), spec="408 inference timeout")
        run.see("in the queue", second.result().short(), spec="408 inference timeout")
        service.release("go")
        service.until(lambda: service.post(b"1").status == 200)
        run.see("what was started", service.note("started").split(), spec=["a"])
        run.see("in progress", service.in_progress(0), spec=True)
    with run.serve("actor.py", "--limit", "0.4", "--batch", "4", "--window", "300") as service:
        answers = service.together([act(sleep=2), b"1", b"2", b"3"])
        run.see("whole batch", [answer.status for answer in answers], spec=[408] * 4)


@case()
def test_full_queue(run: Run) -> None:
    """`--capacity` counts what waits, not what runs."""
    with run.serve("actor.py", "--capacity", "2", "--timeout", "15000") as service:
        first = service.later(service.post, act(wait_for="go", note="x"))
        service.notes("started", 1)
        calls = [service.later(service.post, b"1") for _ in range(11)]
        # One runs and two wait. A call that comes after "go" would be let in, too, so all nine refusals are awaited.
        service.until(lambda: sum(call.done() for call in calls) >= 9)
        run.see("GET / meanwhile", service.get("/").status, spec=200)
        run.see("one more", service.post(b"1"), spec="429 too many request: task queue is full")
        run.see("one more, empty", service.post(b""), spec="200 no data provided")
        service.release("go")
        answers = [call.result() for call in (first, *calls)]
        run.see("accepted of twelve", sum(answer.status == 200 for answer in answers), spec=3)
        run.see(
            "others",
            {answer.short() for answer in answers if answer.status != 200},
            spec={"429 too many request: task queue is full"},
        )
        run.see("afterwards", service.post(b"1").status, spec=200)


@case()
def test_back_pressure(run: Run) -> None:
    """A later stage that is slow fills the queues before it, up to the first one, which refuses."""
    with run.serve("actor.py", "--second", "--capacity", "2", "--timeout", "15000") as service:
        calls = [service.later(service.post, act(then_wait_for="go"))]
        service.notes("second", 1)
        # One by one: each goes as far as it can before the next one comes. What is let in is not answered yet.
        while len(calls) < 20 and not all(call.done() for call in calls[-3:]):
            calls.append(service.later(service.post, b"1"))
            service.until(calls[-1].done, patience=0.5)
        service.release("go")
        answers = [call.result().short() for call in calls]
        run.see("accepted", sum(answer.startswith("200 ") for answer in answers), spec=6)
        run.see("others", set(answers[-3:]), spec={"429 too many request: task queue is full"})


LEAKS = "D10: what a client that has left asked for is cleaned up"


@case(
    differs=[
        Difference("in progress", False, True, LEAKS, sometimes=True),
        Difference("in progress after half a body", False, True, LEAKS, sometimes=True),
    ]
)
def test_client_leaves(run: Run) -> None:
    """A client that leaves does no harm; the gauge goes back to zero."""
    with run.serve("actor.py", "--timeout", "5000") as service:
        with service.connect() as connection:
            connection.send(request("POST", "/inference", act(wait_for="go", note="running")))
            service.notes("started", 1)
        service.release("go")
        run.see("next", service.post(b"1").short(), spec="200 1")
        run.see("in progress", service.in_progress(0))
        with service.connect() as connection:
            connection.send(request("POST", "/inference", b"1" * 10)[:-5])
        run.see("next after half a body", service.post(b"1").short(), spec="200 1")
        run.see("in progress after half a body", service.in_progress(0))


@case(differs=[Difference("in progress", False, True, LEAKS)])
def test_client_leaves_and_worker_dies(run: Run) -> None:
    """The worker dies of what a client wanted that has left."""
    with run.serve("actor.py", "--workers", "2", "--timeout", "3000") as service:
        with service.connect() as connection:
            connection.send(request("POST", "/inference", act(note="x", wait_for="go", exit=3)))
            service.notes("started", 1)
        service.release("go")
        run.see("next", service.post(b"1").short(), spec="200 1")
        run.see("in progress", service.in_progress(0), spec=False)


@case(differs=[Difference("let in while the worker is busy", False, True, "D18: what has expired makes room")])
def test_expired_requests(run: Run) -> None:
    """Requests that have expired in the queue do not keep others out."""
    with run.serve("actor.py", "--capacity", "2", "--timeout", "600", "--limit", "20") as service:
        calls = [service.later(service.post, act(wait_for="go", note="x"))]
        service.notes("started", 1)
        calls += [service.later(service.post, b"1") for _ in range(4)]
        statuses = {call.result().status for call in calls}
        run.see("statuses", sorted(statuses), spec=[408, 429])
        let_in = service.until(lambda: service.post(b"1").status != 429, patience=3)
        run.see("let in while the worker is busy", let_in, spec=False)
        service.release("go")
        run.see("then", service.until(lambda: service.post(b"1").status == 200), spec=True)


DIED = "500 the worker process died while handling this request"
HANGS = "408 inference timeout"


@case(differs=[Difference("the one that killed", HANGS, DIED, "D1: the client is told at once")])
def test_one_of_two_dies(run: Run) -> None:
    """A worker that dies is replaced, with the same id, and nobody else notices."""
    with run.serve("actor.py", "--workers", "2", "--timeout", "6000") as service:
        run.see("the one that killed", service.post(act(exit=3)).short(), spec=HANGS)
        run.see("ids", serving(service), spec=[1, 2])
        run.see("GET /", service.get("/").status, spec=200)
        run.see("exit code", service.stop(), spec=0)


def shuts_down(answer: str) -> bool:
    """The port closes as the first request's time is over, now before the next one comes and now after."""
    return answer in ("503 gracefully shutting down", "refused ")


@case(
    differs=[
        Difference("the one that killed", HANGS, DIED, "D1: the client is told at once"),
        Difference("next", shuts_down, "200 1", "D3: the worker is started again"),
        Difference("ends by itself", True, False, "D3: the worker is started again"),
    ]
)
def test_only_one_dies(run: Run) -> None:
    """The only worker of a stage dies."""
    with run.serve("actor.py", "--timeout", "6000") as service:
        run.see("the one that killed", service.post(act(exit=3)).short(), spec=HANGS)
        run.see("next", service.post(b"1").short())
        ends = run.side.is_reference and service.exit_code() != "still running"
        run.see("ends by itself", ends or service.process.poll() is not None, spec=True)
        run.see("exit code", service.stop(), spec=0)


UNSENDABLE = {"str": "str", "none": "NoneType", "number": "int"}


@case(
    differs=[
        Difference(kind, [HANGS] * 2, [f"500 encoding error: serialize returned {name}, expected bytes", "200 1"], "D8")
        for kind, name in UNSENDABLE.items()
    ]
)
def test_wrong_bytes(run: Run) -> None:
    """`serialize` gives what cannot be sent: that item alone fails, and no process dies."""
    options = ("--workers", "2", "--batch", "2", "--window", "1400", "--timeout", "1500")
    for kind in UNSENDABLE:
        with run.serve("actor.py", *options) as service:
            bodies = [json.dumps({"as": kind, "text": "x"}).encode(), b"1"]
            run.see(kind, [answer.short() for answer in service.together(bodies)], spec=[HANGS] * 2)


@case(
    differs=[
        Difference(kind, HANGS, DIED, "D1: the client is told at once") for kind in ("SystemExit", "KeyboardInterrupt")
    ]
)
def test_leaving_forward(run: Run) -> None:
    """SystemExit and KeyboardInterrupt in `forward`."""
    with run.serve("actor.py", "--workers", "3", "--timeout", "6000") as service:
        left = service.together([act(forward=[kind, 0]) for kind in ("SystemExit", "KeyboardInterrupt")])
        for kind, answer in zip(("SystemExit", "KeyboardInterrupt"), left, strict=True):
            run.see(kind, answer.short(), spec=HANGS)
        run.see("next", service.post(b"1").short(), spec="200 1")


def workers(service: Service) -> list[int]:
    """The processes of the service that run user code."""
    return [pid for pid in service.family() if any(mark in command(pid) for mark in ("spawn_main", "mosec.runner"))]


def servers(service: Service) -> list[int]:
    """Those that hand requests to the workers: of MOSEC one beside the script, of this project the script."""
    return [pid for pid in service.family() if "config.json" in command(pid)] or [service.process.pid]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


HALF_READ = "D22: nothing is read in parts that a pause could come between"


@case(
    differs=[
        Difference("a large body", HANGS, "200 8000002", HALF_READ),
        Difference("goes on", False, True, HALF_READ),
    ]
)
def test_stopped_in_the_middle(run: Run) -> None:
    """The server stands still for three seconds while a worker has read a part of a request, as on a busy host."""
    with run.serve("actor.py", "--timeout", "9000") as service:
        (worker,), (server,) = workers(service), servers(service)
        os.kill(worker, signal.SIGSTOP)
        answer = service.later(service.post, json.dumps("x" * 8_000_000).encode())
        service.in_progress(1)
        time.sleep(0.5)  # MOSEC's server gets as far as it can without the worker, which nothing outside of it shows
        os.kill(server, signal.SIGSTOP)
        os.kill(worker, signal.SIGCONT)
        time.sleep(3)  # longer than MOSEC's workers wait for the rest
        os.kill(server, signal.SIGCONT)
        response = answer.result()
        run.see("a large body", response.short() if response.status != 200 else f"200 {len(response.body)}")
        run.see("goes on", service.until(lambda: service.post(b"1").short() == "200 1"), spec=False)


@case(
    differs=[Difference("a large answer", HANGS, "200 8000000", "D22: a pause of the server costs no answer")],
)
def test_stopped_under_an_answer(run: Run) -> None:
    """The server stands still for three seconds while a worker writes a large answer."""
    with run.serve("actor.py", "--workers", "2", "--timeout", "9000") as service:
        serving(service)
        (server,) = servers(service)
        large = {"note": "x", "wait for": "go", "as": "bytes", "text": "x", "times": 8_000_000}
        answer = service.later(service.post, json.dumps(large).encode())
        service.notes("started", 1)
        os.kill(server, signal.SIGSTOP)
        service.release("go")
        time.sleep(3)  # longer than MOSEC's workers wait for room to write
        os.kill(server, signal.SIGCONT)
        response = answer.result()
        run.see("a large answer", response.short() if response.status != 200 else f"200 {len(response.body)}")
        run.see("goes on", service.post(b"1").short(), spec="200 1")
