"""The mixins, with good and bad input."""

import json
import re
from typing import Any

import msgpack
from harness import ANY, Difference, Run, case
from harness.redis import Redis
from harness.wire import Response


def unpacked(answer: Response) -> dict[str, Any]:
    """The answer, its body read as MessagePack where it is that."""
    seen = answer.seen()
    if answer.header("content-type") == "application/msgpack":
        seen["body"] = repr(msgpack.unpackb(answer.body))
        seen.pop("header content-length")
    return seen


@case(
    differs=[
        Difference("typed, malformed / status", 500, 400, "D13"),
        Difference("typed, malformed / body", ANY, re.compile("decoding error: .*"), "D13"),
    ],
)
def test_codecs(run: Run) -> None:
    """MessagePack, plain and typed, and arrays between stages."""
    pack = msgpack.packb
    with run.serve("mixins.py") as service:
        run.see("packed", unpacked(service.post(pack({"a": [1, b"\0"]}), "/packed")))
        body = unpacked(service.post(pack([1, [2]]), "/packed"))
        run.see("arrays are tuples", body, spec={"body": "{'type': 'tuple', 'data': [1, [2]]}"})
        run.see("packed, malformed", service.post(b"\xc1", "/packed"), spec={"status": 400})
        run.see("packed, cut", service.post(pack("abc")[:-1], "/packed"), spec={"status": 400})
        run.see("packed, too much", service.post(pack(1) + b"\0", "/packed"), spec={"status": 400})
        run.see("packed, no type for it", service.post(pack("object"), "/packed"), spec={"status": 500})
        for path in ("typed", "typed/batch"):
            run.see(path, unpacked(service.post(pack({"x": 1, "name": "n"}), f"/{path}")), spec={"status": 200})
            run.see(f"{path}, wrong type", service.post(pack({"x": "1"}), f"/{path}"), spec={"status": 422})
            run.see(f"{path}, missing", service.post(pack({"name": "n"}), f"/{path}"), spec={"status": 422})
            run.see(f"{path}, not an object", service.post(pack([1]), f"/{path}"), spec={"status": 422})
        run.see(
            "typed/list", unpacked(service.post(pack([{"x": 1}, {"x": 2}]), "/typed/list")), spec={"body": "[1, 2]"}
        )
        run.see("typed/list, not a list", service.post(pack({"x": 1}), "/typed/list"), spec={"status": 422})
        run.see("typed/any", unpacked(service.post(pack([1, {"a": 2}]), "/typed/any")), spec={"status": 200})
        run.see("typed/checked", unpacked(service.post(pack({"x": 1}), "/typed/checked")), spec={"status": 200})
        run.see("typed/checked, wrong", service.post(pack({"x": "1"}), "/typed/checked"), spec={"status": 422})
        malformed = service.post(b"\xc1", "/typed").seen()
        malformed.pop("header content-length")
        run.see("typed, malformed", malformed, spec={"status": 500})
        run.see("array", service.post(b"[1, 2.5]", "/array"))
        run.see("not an array", service.post(b"1", "/array"), spec={"status": 500})


@case(differs=[Difference("left over", ["REDIS_SHM_IPC_KEY"], [], "announced: keys are random, no counter is kept")])
def test_redis(run: Run) -> None:
    """Payloads between stages that wait in Redis, and are gone afterwards."""
    with Redis() as redis:
        with run.serve("mixins.py", "--redis", str(redis.port)) as service:
            answers = [service.post(json.dumps(n).encode()).short() for n in range(3)]
            run.see("answers", answers)
            run.see("left over", sorted(key.decode() for key in redis.data))
        address = {"MOSEC_INTERNAL_REDIS_URL": f"redis://127.0.0.1:{redis.port}/0"}
        with run.serve("mixins.py", "--redis", "0", env=address) as service:
            run.see("by the environment", service.post(b"1").short())
    with run.serve("mixins.py", "--redis", "0") as service:
        run.see("no address", service.post(b"1").short(), spec="500 inference internal error")


LEFT_OUT = "announced: what only the description needs keeps no service from starting"


@case(
    differs=[
        Difference("result / answer", "refused ", re.compile("200 .*"), LEFT_OUT),
        Difference("result / exit code", 1, 0, LEFT_OUT),
    ]
)
def test_unknown_type(run: Run) -> None:
    """A typed worker whose requests or results are of a type that there is not."""
    for what in ("request", "result"):
        with run.serve("mixins.py", "--unknown", what, wait=False) as service:
            service.until(lambda service=service: service.process.poll() is not None or service.get("/").status == 200)
            run.see(f"{what} / answer", service.post(msgpack.packb({"x": 1})).short(), spec="refused ")
            run.see(f"{what} / exit code", service.stop(), spec=1)
            run.see(f"{what} / told", "name 'Missing' is not defined" in service.err, spec=True)
