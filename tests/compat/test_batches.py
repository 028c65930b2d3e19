"""Batches: what one bad item does to the others, windows, order, and what a worker may return."""

import json
import time

from harness import ABSENT, Difference, Run, case
from harness.acts import act, serving
from harness.service import Service

BATCH = ("--batch", "32", "--window", "3000", "--timeout", "9000")
# Each way of being bad, and what the reference then answers to all 32.
BAD = {
    "decode": "400 decoding error: decoding error",
    "decode, own error": "400 bad request: x",
    "validation": "422 request validation error: x",
    "decode, any other error": "500 inference internal error",
    "encode": "500 encoding error: x",
    "encode, any other error": "500 inference internal error",
    "not for JSON": "500 encoding error: encoding error",
}
BODIES: dict[str, bytes] = {
    "decode": b"{",
    "decode, own error": b'{"decode": ["ClientError", "x"]}',
    "validation": b'{"decode": ["ValidationError", "x"]}',
    "decode, any other error": b'{"decode": ["KeyError", "x"]}',
    "encode": b'{"encode": ["EncodingError", "x"]}',
    "encode, any other error": b'{"encode": ["KeyError", "x"]}',
    "not for JSON": b'{"object": 1}',
}
ALONE = "D7: one bad item fails alone"


def with_one_bad(service: Service, body: bytes) -> tuple[str, dict[str, int]]:
    """The answer to a bad request among 31 good ones, and how often each answer was given to those."""
    bodies = [json.dumps(n).encode() for n in range(31)]
    bodies.insert(17, body)
    answers = [answer.short() for answer in service.together(bodies)]
    bad = answers.pop(17)
    good: dict[str, int] = {}
    for number, answer in enumerate(answers):
        kind = "its own" if answer == f"200 {number}" else answer
        good[kind] = good.get(kind, 0) + 1
    return bad, good


def alone(*keys: str) -> list[Difference]:
    return [
        difference
        for key in keys
        for difference in (
            Difference(f"{key} / others / its own", lambda value: value != 31, 31, ALONE),
            Difference(f"{key} / others / {BAD[key]}", 31, lambda value: value != 31, ALONE),
        )
    ]


@case(
    differs=[
        *alone(*BAD),
        Difference("batches / sizes", ["32"], ["31", "32"], "D7: what cannot be decoded is not in the list"),
    ]
)
def test_one_bad_among_32(run: Run) -> None:
    """Decoding, validation and encoding."""
    with run.serve("actor.py", *BATCH) as service:
        for key, body in BODIES.items():
            bad, good = with_one_bad(service, body)
            run.see(key, {"bad": bad, "others": good}, spec={"bad": BAD[key], "others": {BAD[key]: 31}})
        run.see("batches / sizes", sorted(set(service.note("batches").split())), spec=["32"])


INSTEAD = "announced: an exception in an item's place is that item's error"
ENCODING = "500 encoding error: encoding error"


@case(
    differs=[
        Difference("instance / bad", ENCODING, "400 bad request: x", INSTEAD),
        Difference("instance / others / its own", ABSENT, 31, INSTEAD),
        Difference(f"instance / others / {ENCODING}", 31, ABSENT, INSTEAD),
        Difference("other instance / bad", ENCODING, "500 inference internal error", INSTEAD),
        Difference("other instance / others / its own", ABSENT, 31, INSTEAD),
        Difference(f"other instance / others / {ENCODING}", 31, ABSENT, INSTEAD),
    ]
)
def test_exception_in_place(run: Run) -> None:
    """`forward` returns an exception as one item's result."""
    with run.serve("actor.py", *BATCH) as service:
        for key, error in {"instance": "ClientError", "other instance": "KeyError"}.items():
            bad, good = with_one_bad(service, json.dumps({"instead": [error, "x"]}).encode())
            run.see(key, {"bad": bad, "others": good})


@case()
def test_results(run: Run) -> None:
    """What `forward` returns for a batch: its type and its length."""
    failed = ["500 inference internal error"] * 4
    with run.serve("actor.py", "--batch", "4", "--window", "1000") as service:
        for kind in ("short", "long", "generator", "none"):
            bodies = [json.dumps({"result": kind, "n": n}).encode() for n in range(4)]
            run.see(kind, [answer.short() for answer in service.together(bodies)], spec=failed)
        bodies = [json.dumps({"result": "tuple", "n": n}).encode() for n in range(4)]
        run.see("tuple", [json.loads(answer.body)["n"] for answer in service.together(bodies)], spec=[0, 1, 2, 3])
        bodies = [json.dumps({"result": "array"}).encode() for _ in range(4)]
        answers = sorted(answer.short() for answer in service.together(bodies))
        run.see("array", answers, spec=["200 0", "200 1", "200 2", "200 3"])
        errors = [json.dumps({"forward": ["ClientError", "x"]} if n == 2 else n).encode() for n in range(4)]
        answers = [answer.short() for answer in service.together(errors)]
        run.see("forward raises", answers, spec=["400 bad request: x"] * 4)


@case()
def test_windows(run: Run) -> None:
    """When a batch goes: full, or when its window has passed."""
    with run.serve("actor.py", "--batch", "4", "--window", "600", "--timeout", "5000") as service:
        lone = service.post(b"1")
        run.see("a lone request waits", lone.seconds >= 0.55, spec=True)
        service.together([b"1"] * 4)
        run.see("after a full batch", service.notes("batches", 2), spec=["1", "4"])
        service.together([b"1"] * 3)
        run.see("after three", service.notes("batches", 3), spec=["1", "4", "3"])
        service.together([b"1"] * 6)
        run.see("after six", sorted(service.notes("batches", 5)[3:]), spec=["2", "4"])
    with run.serve("actor.py", "--batch", "4", "--window", "60000", "--timeout", "9000") as service:
        run.see(
            "a full batch does not wait", {answer.short() for answer in service.together([b"1"] * 4)}, spec={"200 1"}
        )
    with run.serve("actor.py", "--batch", "4", "--wait", "600", "--timeout", "5000") as service:
        run.see("window of the command line", service.post(b"1").seconds >= 0.55, spec=True)


@case()
def test_while_busy(run: Run) -> None:
    """What arrives while the worker runs is taken together, in the order of arrival."""
    with run.serve("actor.py", "--batch", "8", "--window", "50", "--timeout", "8000") as service:
        first = service.later(service.post, b'{"wait for": "go", "note": "first"}')
        service.notes("started", 1)
        rest = []
        for n in range(10):
            rest.append(service.later(service.post, json.dumps({"note": str(n)}).encode()))
            service.in_progress(n + 2)
        service.release("go")
        run.see("answers", [first.result().status, *(call.result().status for call in rest)], spec=[200] * 11)
        run.see("batches", service.note("batches").split(), spec=["1", "8", "2"])
        run.see("order", service.note("started").split(), spec=["first", *map(str, range(10))])


@case()
def test_idle_worker(run: Run) -> None:
    """What waits goes to whichever worker is free first."""
    with run.serve("actor.py", "--workers", "2", "--timeout", "15000") as service:
        serving(service)
        first, second = (service.later(service.post, act(wait_for=name, note=name)) for name in ("one", "two"))
        service.notes("started", 2)
        waiting = [service.later(service.post, b"1") for _ in range(2)]
        service.in_progress(4)
        service.release("one")
        run.see("first", first.result().status, spec=200)
        run.see("the last one", service.until(lambda: all(call.done() for call in waiting), patience=5), spec=True)
        service.release("two")
        run.see("answers", [call.result().status for call in (second, *waiting)], spec=[200] * 3)


@case()
def test_one_at_a_time(run: Run) -> None:
    """One process runs one `forward` at a time; two run two."""
    for workers in (1, 2):
        with run.serve("actor.py", "--workers", str(workers), "--timeout", "5000") as service:
            serving(service, workers)
            calls = [service.later(service.post, b'{"wait for": "go", "note": "x"}') for _ in range(3)]
            service.in_progress(3)
            run.see(f"{workers} workers", len(service.notes("started", workers)), spec=workers)
            service.release("go")
            run.see(f"{workers} workers / answers", [call.result().status for call in calls], spec=[200] * 3)


@case(
    differs=[
        Difference("waits a whole window more", True, False, "D26: the window counts from the oldest request's arrival")
    ]
)
def test_window_of_what_has_waited(run: Run) -> None:
    """A request that has waited for longer than a window while the worker was busy, when the worker is free."""
    with run.serve("actor.py", "--batch", "4", "--window", "900", "--timeout", "9000") as service:
        service.together([b"1"] * 4)
        busy = [service.later(service.post, body) for body in (act(wait_for="go", note="x"), *[b"1"] * 3)]
        service.notes("started", 1)
        waiting = service.later(service.post, b"1")
        service.in_progress(5)
        time.sleep(1)
        service.release("go")
        start = time.monotonic()
        run.see("busy", [call.result().status for call in busy], spec=[200] * 4)
        run.see("waiting", waiting.result().short(), spec="200 1")
        run.see("waits a whole window more", time.monotonic() - start > 0.7, spec=True)


@case()
def test_registered(run: Run) -> None:
    """A `Runtime` that says nothing of its limits has those of the command line."""
    with run.serve("actor.py", "--registered", "--batch", "4", "--wait", "600", "--timeout", "5000") as service:
        run.see("window", service.post(b"1").seconds >= 0.55, spec=True)
        run.see("more than three seconds", service.post(act(sleep=3.2)).status, spec=200)
    with run.serve("actor.py", "--registered", "--timeout", "700") as service:
        run.see("limit", service.post(act(sleep=1.5)).status, spec=408)
    with run.serve("actor.py", "--batch", "4", "--wait", "0") as service:
        run.see("no window", service.post(b"1").short(), spec="200 1")
