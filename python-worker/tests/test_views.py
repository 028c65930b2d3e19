"""Payloads that a worker sees in shared memory, and the headers it is told of: a service run by `python server.py`."""

import http.client
import json
import re
from collections.abc import Iterator, Sequence

import pytest
from running import BOUND, Service, wait_until

pytest.importorskip("mosec._native", reason="the extension is not built: `make wheel-dev` installs it")

SCRIPT = """
import json
from mosec import Runtime, Server, Worker

LARGE = 1 << 20

class Sum(Worker):
    zero_copy = True
    kept = []

    def deserialize(self, data):
        assert type(data) is memoryview and data.readonly
        return data

    def forward(self, data):
        kind, *_ = data[:1]
        if kind == ord("k"):
            self.kept.append(data[1:])
        if kind == ord("d"):
            self.kept.clear()
        return {"sum": sum(data[-100:]), "kept": [bytes(view[-3:]).decode() for view in self.kept]}

class Double(Worker):
    zero_copy = True

    def deserialize(self, data):
        return data

    def forward(self, data):
        return [bytes(item) * 2 for item in data]

    def serialize_ipc(self, data):
        return data

class Length(Worker):
    zero_copy = True

    def deserialize_ipc(self, data):
        assert type(data) is memoryview
        return data

    def forward(self, data):
        return [{"bytes": len(item), "last": item[-1]} for item in data]

class Headers(Worker):
    request_headers = ["X-User", "accept-language"]

    def forward(self, data, ctx):
        return dict(ctx.headers)

class Later(Worker):
    request_headers = ["x-later"]

    def forward(self, data, ctx):
        return [{"before": before, "here": dict(one.headers)} for before, one in zip(data, ctx)]

if __name__ == "__main__":
    server = Server()
    server.register_runtime({
        "/sum": [Runtime(Sum)],
        "/double": [Runtime(Double, 1, 4, 5), Runtime(Length, 1, 4, 5)],
        "/headers": [Runtime(Headers), Runtime(Later, 1, 2, 5)],
    })
    server.run()
"""
# Kept in one place: more than a worker may keep in place, and every one of them above what is copied anyway.
MANY = 80
LARGE = 1 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("views")
    script = folder / "server.py"
    script.write_text(SCRIPT)
    with Service(folder, script, "--timeout", "20000") as running:
        yield running


def memory_in_use(service: Service) -> float:
    (line,) = re.findall(r"^mosec_agent_arena_used_bytes (\S+)$", service.get("/metrics")[2].decode(), re.MULTILINE)
    return float(line)


def post(service: Service, path: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> tuple[int, object]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=BOUND)
    try:
        connection.putrequest("POST", path)
        for name, value in headers:
            connection.putheader(name, value)
        connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_views_small_and_large(service: Service) -> None:
    for size in (1, 100, 64 * 1024, LARGE):
        assert post(service, "/sum", b"\x01" * size) == (200, {"sum": min(size, 100), "kept": []})


def test_a_view_that_is_kept_stays_as_it_was(service: Service) -> None:
    expected = []
    for number in range(MANY):
        body = b"k" + b"." * LARGE + f"{number:03}".encode()
        status, answer = post(service, "/sum", body)
        expected.append(f"{number:03}")
        assert status == 200 and isinstance(answer, dict)
        assert answer["kept"] == expected, "neither those in place nor those that were copied in the end have changed"
    wait_until(lambda: memory_in_use(service) > 4 * LARGE, "what is kept in place is in use")
    assert post(service, "/sum", b"d" * LARGE)[0] == 200
    assert post(service, "/sum", b"x")[1] == {"sum": ord("x"), "kept": []}
    wait_until(lambda: memory_in_use(service) < 4 * LARGE, "all of it is there for others again")


def test_views_between_stages(service: Service) -> None:
    assert post(service, "/double", b"\x07" * LARGE) == (200, {"bytes": 2 * LARGE, "last": 7})


def test_headers_of_the_request(service: Service) -> None:
    languages = [("Accept-Language", "de"), ("accept-language", "en")]
    headers = [("x-user", "a"), ("X-Other", "no"), *languages, ("X-LATER", "l")]
    status, answer = post(service, "/headers", b"{}", headers)
    assert (status, answer) == (
        200,
        {"before": {"x-user": "a", "accept-language": "de, en"}, "here": {"x-later": "l"}},
    )
    assert post(service, "/headers", b"{}") == (200, {"before": {}, "here": {}})
