"""Several routes, shared stages, and which codec is used where."""

from harness import Run, case


@case()
def test_shared_stages(run: Run) -> None:
    """Each task is decoded and encoded by its place on its own route."""
    with run.serve("pipeline.py") as service:
        for route in ("/all", "/shared", "/shared/first", "/shared/last", "/pickled"):
            run.see(route, service.post(b"1", route))
        whole = "Shared_3.out(Shared_3.forward(Shared_3.in(x)))"
        run.see("the whole way", service.post(b"x", "/shared"), spec=f"200 {whole}")
        run.see("no such route", service.post(b"1", "/inference"), spec="404 ")
        run.see("empty", service.post(b"", "/all"), spec="200 no data provided")
        run.see("unpicklable", service.post(b"1", "/unpicklable"))
        for kind in ("ClientError", "ValueError"):
            for stage in ("First_2", "Shared_3", "Last_4"):
                run.see(f"{kind} in {stage}", service.post(f"{kind} in {stage}".encode(), "/all"))
        routes = ("/all", "/shared", "/shared/first", "/shared/last")
        calls = [service.later(service.post, b"1", route) for route in routes]
        run.see("in one batch", [call.result().short() for call in calls])


@case()
def test_appended_stages(run: Run) -> None:
    """`append_worker` with routes: the order of the calls is the order of each route."""
    with run.serve("pipeline.py", "--appended") as service:
        for route in ("/a", "/b", "/c"):
            run.see(route, service.post(b"1", route))
        run.see("default route", service.post(b"1"), spec="404 ")
