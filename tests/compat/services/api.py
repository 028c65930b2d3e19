"""What the API has and what it refuses, written down as JSON."""

import importlib
import inspect
import json
import multiprocessing
import warnings
from collections.abc import Callable
from typing import Any

import mosec
from mosec import Runtime, Server, Worker

NAMES = {
    "mosec": ("__version__",),
    "mosec.coordinator": ("State",),
    "mosec.server": ("GUARD_CHECK_INTERVAL", "Server"),
    "mosec.protocol": ("HTTPStatusCode",),
    "mosec.errors": ("MosecError", "MosecTimeoutError", "ClientError", "ValidationError"),
    "mosec.runtime": ("Runtime",),
    "mosec.worker": ("Worker", "SSEWorker"),
    "mosec.mixin.msgpack_worker": ("MsgpackMixin",),
    "mosec.mixin.typed_worker": ("TypedMsgPackMixin",),
    "mosec.mixin.numbin_worker": ("NumBinIPCMixin",),
    "mosec.mixin.redis_worker": ("RedisShmIPCMixin",),
    "mosec.mixin.plasma_worker": ("PlasmaShmIPCMixin",),
    "mosec.mixin": ("MsgpackMixin", "TypedMsgPackMixin", "NumBinIPCMixin", "RedisShmIPCMixin", "PlasmaShmIPCMixin"),
    "mosec.log": ("get_logger",),
    "mosec.env": ("get_env_namespace",),
    "mosec.args": ("parse_arguments", "mosec_args"),
}


RESERVED = ("/", "/metrics", "/openapi", "/openapi/metadata.json", "/openapi/swagger", "/openapi/swagger/", "/a/b")


class First(Worker):
    def forward(self, data: Any) -> Any:
        return data


class NotAbstract(Worker):
    pass


def refusal(call: Callable[[], Any]) -> Any:
    """What a call raises, as text; `null` where it does not."""
    try:
        call()
    except Exception as error:
        # The text shows a set, whose order changes from run to run.
        return f"{type(error).__name__}: {error}".replace("{'spawn', 'fork'}", "{'fork', 'spawn'}")
    return None


def append(**named: Any) -> Callable[[], Any]:
    return lambda: Server().append_worker(**{"worker": First, **named})


def make(**named: Any) -> Callable[[], Any]:
    return lambda: Runtime(**{"worker": First, **named})


BAD: dict[str, dict[str, Any]] = {
    "num 0": {"num": 0},
    "num -1": {"num": -1},
    "num 1.5": {"num": 1.5},
    "num text": {"num": "1"},
    "batch 0": {"max_batch_size": 0},
    "batch text": {"max_batch_size": "1"},
    "wait -1": {"max_wait_time": -1},
    "wait 1.5": {"max_wait_time": 1.5},
    "timeout -1": {"timeout": -1},
    "timeout text": {"timeout": "1"},
    "timeout whole": {"timeout": 3},
    "start method": {"start_method": "thread"},
    "forkserver": {"start_method": "forkserver"},
    "fork": {"start_method": "fork"},
    "env too short": {"num": 2, "env": [{}]},
    "env empty": {"env": []},
    "env of numbers": {"env": [{"A": 1}]},
    "env of numbers as keys": {"env": [{1: "a"}]},
    "env of text": {"env": ["A"]},
    "env one": {"env": [{"A": "a"}]},
    "not a worker": {"worker": int},
    "an instance": {"worker": First()},
    "a name": {"worker": "First"},
    "abstract": {"worker": NotAbstract},
}


def both_ways(routes: dict[str, list[Any]]) -> Callable[[], Any]:
    def call() -> None:
        server = Server()
        server.append_worker(First)
        server.register_runtime(routes)

    return call


def registered(routes: Any) -> Callable[[], Any]:
    return lambda: Server().register_runtime(routes)


def registered_twice() -> None:
    server = Server()
    server.register_runtime({"/a": [Runtime(First)]})
    server.register_runtime({"/b": [Runtime(First)]})


def registered_and_appended() -> None:
    server = Server()
    server.register_runtime({"/a": [Runtime(First)]})
    server.append_worker(First)
    server.append_worker(First, route="/a")


def daemon(name: Any, process: Any) -> Callable[[], Any]:
    return lambda: Server().register_daemon(name, process)


def running(*routes: str) -> Callable[[], Any]:
    def call() -> None:
        server = Server()
        for route in routes:
            server.append_worker(First, route=route)
        server.run()

    return call


def main() -> None:
    shared = Runtime(First)
    # A server that is refused as it runs is refused at once; the others never run.
    seen: dict[str, Any] = {
        "all": sorted(mosec.__all__),
        "bases": {name: bases(getattr(mosec, name)) for name in mosec.__all__},
        "append": {name: refusal(append(**given)) for name, given in BAD.items()},
        "runtime": {name: refusal(make(**given)) for name, given in BAD.items()},
        "routes": {path: refusal(append(route=path)) for path in RESERVED},
        "register": {
            "after append": refusal(both_ways({"/a": [Runtime(First)]})),
            "reserved": refusal(registered({"/metrics": [Runtime(First)]})),
            "twice": refusal(registered_twice),
            "and appended": refusal(registered_and_appended),
            "one runtime twice": refusal(registered({"/a": [shared, shared]})),
            "shared": refusal(registered({"/a": [shared], "/b": [shared]})),
        },
        "run": {
            "nothing": refusal(running()),
            "template": refusal(running("/v1/{x}")),
            "no slash": refusal(running("v1")),
        },
        "daemon": {
            "not a process": refusal(daemon("x", 5)),
            "number for a name": refusal(daemon(5, multiprocessing.Process())),
            "process": refusal(daemon("x", multiprocessing.Process())),
        },
        "logger": logger(),
        "parameters": {
            name: parameters(name)
            for name in (
                "Server.append_worker",
                "Server.register_daemon",
                "Server.register_runtime",
                "Runtime.__init__",
                "SSEWorker.send_stream_event",
            )
        },
        "defaults": {
            "example": First.example,
            "multi_examples": list(First.multi_examples),
            "mime": First.resp_mime_type,
            "request mime": getattr(First, "req_mime_type", None),
            "worker_id": First().worker_id,
        },
        "codecs": codecs(First()),
    }
    for module, names in NAMES.items():
        for name in names:
            seen[f"{module}.{name}"] = refusal(lambda m=module, n=name: getattr(importlib.import_module(m), n))
    seen["stage names"] = [Runtime(First).name.rpartition("_")[0], type(Runtime(First).name).__name__]
    print(json.dumps(seen))


def bases(found: Any) -> list[str]:
    return [base.__name__ for base in found.__mro__] if inspect.isclass(found) else []


def parameters(name: str) -> list[str]:
    """Names and defaults."""
    owner, _, method = name.partition(".")
    function = getattr(getattr(mosec, owner, None), method, None)
    given = {} if function is None else inspect.signature(function).parameters
    return [name if one.default is one.empty else f"{name}={one.default!r}" for name, one in given.items()]


def logger() -> dict[str, Any]:
    """The logger for a service's own lines."""
    found = mosec.get_logger()
    return {
        "name": found.name,
        "level": found.level,
        "propagates": found.propagate,
        "handlers": len(found.handlers),
        "the same again": mosec.get_logger() is found,
    }


def codecs(worker: Worker) -> dict[str, Any]:
    return {
        "empty": worker.deserialize(b""),
        "bad": refusal(lambda: worker.deserialize(b"{")),
        "bad text": refusal(lambda: worker.deserialize(b"\xff")),
        "out": worker.serialize({"a": [1, {"b": None}], "\u00e9": float("inf")}).decode(),
        "not for JSON": refusal(lambda: worker.serialize(object())),
        "bytes": refusal(lambda: worker.serialize(b"a")),
        "between": worker.deserialize_ipc(bytearray(worker.serialize_ipc({"a": (1,)}))) == {"a": (1,)},
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
