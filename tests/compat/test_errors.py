"""Errors of workers, as clients see them."""

import json
from typing import Any

from harness import Run, case
from harness.acts import act

ERRORS: dict[str, tuple[list[Any], str | None]] = {
    "client": (["ClientError", "x"], "400 bad request: x"),
    "client, no text": (["ClientError"], "400 bad request: bad request"),
    "decoding": (["DecodingError", "x"], "400 decoding error: x"),
    "validation": (["ValidationError", "x"], "422 request validation error: x"),
    "validation of a key": (["ValidationError", ["KeyError", "x"]], "422 request validation error: 'x'"),
    "server": (["ServerError", "s-msg\nline2"], "500 internal error: s-msg - line2"),
    "encoding": (["EncodingError", "x"], "500 encoding error: x"),
    "mosec": (["MosecError", "x"], "500 mosec error: x"),
    "two arguments": (["ClientError", "x", 1], None),
    "not ASCII": (["ClientError", "\u00e9\u4e16"], None),
    "line ends": (["ClientError", "\na\r\nb\n\nc\n"], None),
    "own text": (["Quota", "x"], "400 quota exceeded: x"),
    "own text alone": (["Quota"], "400 quota exceeded: quota exceeded"),
    "own status": (["Teapot", "x"], "422 teapot: x"),
    "any other": (["KeyError", "secret"], "500 inference internal error"),
    "zero": (["ZeroDivisionError"], "500 inference internal error"),
    "long": (["ClientError", "x" * 5000], "400 bad request: " + "x" * 5000),
}


@case()
def test_texts(run: Run) -> None:
    """Each class of error, raised in each of the three places."""
    with run.serve("actor.py") as service:
        for place in ("decode", "forward", "encode"):
            for key, (error, spec) in ERRORS.items():
                given = {} if spec is None else {"spec": spec}
                run.see(f"{key} in {place}", service.post(act(**{place: error})), **given)
        run.see("service goes on", service.post(b"1"), spec="200 1")


@case()
def test_own_timeout(run: Run) -> None:
    """A worker that raises MosecTimeoutError itself."""
    with run.serve("actor.py") as service:
        run.see("raised", service.post(act(forward=["MosecTimeoutError", "x"])), spec="408 mosec timeout error: x")


@case()
def test_about(run: Run) -> None:
    """What a worker sees of itself and of its data."""
    known = {
        "data": ["bytearray", 12, '{"about"'],
        "stage": "Actor_1",
        "worker_id": 1,
        "module": "__mp_main__",
        "in the main thread": True,
        "last argument": "x",
    }
    for name, options in {"one": (), "batch": ("--batch", "4")}.items():
        with run.serve("actor.py", *options, "--own-option", "x") as service:
            run.see(name, json.loads(service.post(act(about=1)).body), spec=known)
