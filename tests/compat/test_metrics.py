"""The metrics that dashboards are built on."""

from harness import Difference, Run, case
from harness.acts import act, serving
from harness.exposition import Families, families, has_own, lines
from harness.service import Service


def metrics(service: Service) -> Families:
    return families(service.get("/metrics").body.decode())


OWN = Difference("own families", False, True, "announced: metrics of gateway, dispatch and agents stand beside MOSEC's")


@case(
    differs=[OWN],
)
def test_page(run: Run) -> None:
    """The page itself, before any request."""
    with run.serve("actor.py") as service:
        page = service.get("/metrics")
        text = page.body.decode()
        page.body = b""
        page.headers = [(name, "<length>" if name == "content-length" else value) for name, value in page.headers]
        run.see("page", page, spec={"header content-type": "text/plain; version=0.0.4; charset=utf-8"})
        run.see("own families", has_own(text))
        run.see("text", lines(text))
        run.see("last line", text.splitlines()[-1], spec="# EOF")
        run.see("families", metrics(service), spec={"mosec_service_remaining_task": {"TYPE": "gauge", "value {}": 0.0}})


@case()
def test_series(run: Run) -> None:
    """Every family after requests of every kind."""
    with run.serve("staged.py") as service:
        for path in ("/inference", "/first", "/batch"):
            run.see(path, service.post(b"1", path).short(), spec="200 1")
        for kind, status in {"ClientError": 400, "ValidationError": 422, "ServerError": 500}.items():
            body = b'{"forward": ["%s", "x"]}' % kind.encode()
            run.see(kind, service.post(body).status, spec=status)
        run.see("unknown", service.post(b"1", "/other").status, spec=404)
        service.in_progress(0)
        bounds = [*(str(0.001 * 2**n) for n in range(13)), "+Inf"]
        total = "{connection=total,stage=total}"
        spec = {"mosec_service_process_duration_second": {f"bounds {total}": bounds, f"count {total}": 3.0}}
        run.see("families", metrics(service), spec=spec)


@case()
def test_series_of_streams(run: Run) -> None:
    """A stream counts as 200, whatever becomes of it."""
    with run.serve("sse.py") as service:
        for body in (b'[{"send": "1"}]', b'[{"raise": ["ClientError", "x"]}]', b"{"):
            run.see(body.decode(), service.post(body).status, spec=200)
        service.in_progress(0)
        counted = {"mosec_service_throughput": {"total {code=200,endpoint=/inference}": 3.0}}
        run.see("families", metrics(service), spec=counted)


@case()
def test_options(run: Run) -> None:
    """Namespace, and buckets that follow the time limit."""
    for timeout in ("1000", "60000", "100"):
        with run.serve("actor.py", "--namespace", "own", "--timeout", timeout, "--limit", "2") as service:
            service.until(lambda service=service: service.post(b"1").status == 200)
            found = metrics(service)
            run.see(f"{timeout} / names", sorted(found))
            run.see(f"{timeout} / durations", found.get("own_process_duration_second", {}))


@case(
    differs=[
        Difference(
            "counted",
            ["total {code=408,endpoint=/inference}", "total {code=429,endpoint=/inference}"],
            [f"total {{code={code},endpoint=/inference}}" for code in (200, 408, 413, 429)],
            "D20: what never reaches a worker is counted too",
        )
    ],
)
def test_refusals(run: Run) -> None:
    """What is counted of requests that never reach a worker."""
    options = ("--capacity", "1", "--timeout", "700", "--limit", "9", "--max-request-size", "100")
    with run.serve("actor.py", *options) as service:
        run.see("too large", service.post(b"1" * 101).status, spec=413)
        run.see("empty", service.post(b"").status, spec=200)
        calls = [service.later(service.post, b'{"wait for": "go", "note": "x"}')]
        service.notes("started", 1)
        calls += [service.later(service.post, b"1") for _ in range(9)]
        run.see("statuses", sorted({call.result().status for call in calls}), spec=[408, 429])
        found = metrics(service).get("mosec_service_throughput", {})
        run.see("counted", sorted(key for key in found if key.startswith("total")))
        service.release("go")


@case()
def test_gauge(run: Run) -> None:
    """Requests in progress."""
    with run.serve("actor.py", "--timeout", "9000") as service:
        calls = []
        for count in (1, 2, 3):
            calls.append(service.later(service.post, b'{"wait for": "go"}'))
            run.see(str(count), service.in_progress(count), spec=True)
        service.release("go")
        run.see("answers", [call.result().status for call in calls], spec=[200] * 3)
        run.see("0", service.in_progress(0), spec=True)


THREE = [f"count {{connection={number},stage=Actor_1}}" for number in (1, 2, 3)]


@case(differs=[Difference("series", THREE, THREE[:2], "D19: a worker keeps its number")])
def test_connections(run: Run) -> None:
    """How the series of a worker are called after it was replaced."""
    with run.serve("actor.py", "--workers", "2", "--timeout", "3000") as service:
        serving(service)
        service.post(act(exit=3))
        serving(service)
        found = metrics(service)["mosec_service_process_duration_second"]
        series = sorted(key for key in found if "stage=Actor_1" in key and key.startswith("count"))
        run.see("series", series, spec=THREE)
