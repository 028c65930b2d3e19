"""What queries.py says of answers that are right, wrong or missing."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest
import queries


class Prometheus(BaseHTTPRequestHandler):
    """Answers every query with the same value, or with none."""

    value: str | None
    status: int
    asked: set[str]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if "/label/" in url.path:
            return self._answer(200, ["a-1", "b.2"])
        [expr] = parse_qs(url.query)["query"]
        self.asked.add(expr)
        series = [] if self.value is None else [{"metric": {"pipeline": "a-1"}, "value": [1.0, self.value]}]
        self._answer(self.status, {"resultType": "vector", "result": series})

    def _answer(self, status: int, data: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps({"data": data}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def prometheus() -> Iterator[tuple[str, type[Prometheus]]]:
    kind = type("Fake", (Prometheus,), {"value": "0.5", "status": 200, "asked": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()
    thread.join()
    server.server_close()


def verdicts(rows: list[queries.Row]) -> set[str]:
    return {row.verdict for row in rows}


def test_plausible_answers_are_right(prometheus) -> None:
    url, kind = prometheus
    rows = queries.run(url)
    assert verdicts(rows) == {"ok", "ok: its condition holds"}
    assert len(rows) > 150
    # Variables have their values, as a pattern that means just them.
    assert any('pipeline=~"(a\\\\-1|b\\\\.2)"' in expr for expr in kind.asked)


@pytest.mark.parametrize(
    ("value", "unit", "verdict"),
    [
        ("NaN", "s", "not a number: at rest?"),
        ("+Inf", "s", "infinite"),
        ("1.2", "percentunit", "implausible: 1.2"),
        ("-1", "bytes", "implausible: -1"),
        ("90000", "reqps", "ok"),
    ],
)
def test_values_are_judged_by_their_unit(prometheus, value: str, unit: str, verdict: str) -> None:
    url, kind = prometheus
    kind.value = value
    assert verdicts([row for row in queries.run(url) if row.unit == unit]) == {verdict}


def test_no_data_is_wrong_but_where_there_is_a_reason(prometheus) -> None:
    url, kind = prometheus
    kind.value = None
    rows = queries.run(url)
    assert {row.verdict for row in rows if "gpu" in row.query} == {"ok: no GPU"}
    assert {row.verdict for row in rows if row.panel == "Requests"} == {"no data"}
    # An alert is quiet where what it reads is there, and blind where it is not.
    [leader] = [row for row in rows if row.panel == "MosecNoLeader"]
    assert leader.verdict == "nothing to read: ['mosec_control_plane_leader']"


def test_a_refused_query_is_wrong(prometheus) -> None:
    url, kind = prometheus
    kind.status = 422
    rows = [row for row in queries.run(url) if not row.is_ok]
    assert len(rows) > 150
    assert "422" in queries.table(rows)
