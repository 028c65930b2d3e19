"""Logs, standard output, and the dry run, which tells its result by a log line."""

import json
import re

from harness import ABSENT, ANY, Difference, Run, case, logs

# Lines that people search for.
KNOWN = ("http service is running", "warmup successfully", "socket connected to", "mosec service halted normally [0]")


@case(
    differs=[
        Difference("trace / one line", False, True, "announced: a trace is folded wherever it stands"),
        Difference("failed batch / told twice", True, False, "announced: the line of the worker says it all"),
    ],
)
def test_lines(run: Run) -> None:
    """JSON lines: the user's, and those of the service that are searched for."""
    with run.serve("staged.py") as service:
        for level in ("DEBUG", "INFO", "WARNING", "ERROR"):
            run.see(f"{level} / answer", service.post(json.dumps({"log": level}).encode(), "/first").status, spec=200)
        service.post(b'{"trace": 1}', "/first")
        service.post(b'{"stack": 1}', "/first")
        service.post(b'{"print": "printed"}', "/first")
        service.until(lambda: "printed" in service.out)
        service.post(b'{"forward": ["ValueError", "of a batch"]}', "/first")
        service.post(b'{"forward": ["ClientError", "of a client"]}', "/first")
        service.stop()
        log = service.err
        run.see("print", service.out.splitlines(), spec=["printed"])
        said = [one for one in logs.records(log) if "by a user" in one["fields"]["message"]]
        for one in said:
            run.see(f"user / {one['level']}", {**logs.shape(one), "message": one["fields"]["message"]})
        run.see("levels", [one["level"] for one in said], spec=["INFO", "WARNING", "ERROR"])
        trace = logs.with_message(log, "with a") or {"fields": {}}
        run.see("trace", logs.shape(trace), spec={"target": "user::staged.py:forward"})
        run.see("trace / message", trace["fields"].get("message"))
        run.see("trace / text", "ValueError: of the user's own" in str(trace["fields"].get("exc_info")), spec=True)
        run.see("trace / one line", "\n" not in str(trace["fields"].get("exc_info")))
        stack = logs.with_message(log, "with a stack") or {"fields": {}}
        run.see("stack", logs.shape(stack), spec={"fields": ["message", "stack_info"]})
        failed = logs.with_message(log, "ValueError: of a batch")
        run.see("failed batch", failed is not None and failed["level"], spec="WARNING")
        run.see("failed batch / told twice", "abnormal tasks" in log, spec=True)
        told = logs.with_message(log, "bad request: of a client")
        run.see("client error", told is not None and [told["level"], told["fields"]["message"]])
        for part in KNOWN:
            found = logs.with_message(log, part)
            run.see(part, found is not None and found["level"], spec="INFO")
            run.see(f"{part} / shape", sorted(logs.shape(found or {})["keys"]))
        warm = logs.with_message(log, "warmup successfully") or {"fields": {"message": ""}}
        run.see("label", warm["fields"]["message"].partition(" ")[0], spec="<Last_3|1>")
        run.see("start of the script", (logs.with_message(log, "starting") or {}).get("target"))
        plain = [line for line in log.splitlines() if line and not line.startswith("{")]
        run.see("lines that are not JSON", plain, spec=[])


@case()
def test_levels(run: Run) -> None:
    """`--log-level` holds for the user's logger in every process."""
    for level in ("warning", "error"):
        with run.serve("staged.py", "--log-level", level) as service:
            for one in ("INFO", "WARNING", "ERROR"):
                service.post(json.dumps({"log": one}).encode(), "/first")
            service.stop()
            said = [one["level"] for one in logs.records(service.err) if "by a user" in one["fields"]["message"]]
            run.see(level, said, spec=["WARNING", "ERROR"][level == "error" :])


@case()
def test_debug(run: Run) -> None:
    """`--debug` writes for people."""
    with run.serve("staged.py", "--debug") as service:
        for one in ("DEBUG", "ERROR"):
            service.post(json.dumps({"log": one}).encode(), "/first")
        service.stop()
        said = [line for line in logs.python_debug(service.err) if "by a user" in line[3]]
        run.see("user", said, spec=[(level, "user", "staged.py", "said by a user") for level in ("DEBUG", "ERROR")])
        run.see("no JSON", logs.records(service.err), spec=[])
        run.see("running", "http service is running" in service.err, spec=True)


GOOD = ("one", "two", "many", "none", "instance")
BAD = ("fails", "second fails", "no start", "opaque", "leaves", "frozen")


REAL = "D21: the example of the worker itself, and stages linked as in service"


@case(
    differs=[
        Difference("instance / told", False, "INFO", REAL),
        Difference("opaque / told", False, "INFO", REAL),
        Difference("opaque / exit code", 1, 0, REAL),
        Difference("frozen / told", False, "INFO", REAL),
        Difference("frozen / exit code", 1, 0, REAL),
        *(
            Difference(f"{what} / {key}", ABSENT, ANY, REAL)
            for what in ("instance", "opaque", "frozen")
            for key in ("keys", "request*", "size", "stages", "stage keys")
        ),
    ]
)
def test_dry_run(run: Run) -> None:
    """`--dry-run`: one request through the stages, told by a log line."""
    for what in (*GOOD, *BAD):
        done = run.program("dry.py", "--dry-run", "--port", "0", "--what", what)
        run.see(f"{what} / exit code", done.returncode, spec=int(what in BAD))
        line = logs.with_message(done.stderr, "dry run result")
        run.see(f"{what} / told", line is not None and line["level"])
        if line is not None:
            result = json.loads(line["fields"]["message"].partition("dry run result: ")[2])
            run.see(f"{what} / keys", sorted(result))
            run.see(f"{what} / request", result.get("request"))
            run.see(f"{what} / size", result.get("result_size"))
            stages = result.get("stage_metrics", [])
            run.see(f"{what} / stages", [one.get("stage") for one in stages])
            run.see(f"{what} / stage keys", sorted({key for one in stages for key in one}))
    done = run.program("dry.py", "--dry-run", "--port", "0", "--what", "routes")
    results = [line for line in done.stderr.splitlines() if "dry run result" in line]
    run.see("routes", [done.returncode, [re.findall(r"[A-Z]\w+_\d", line) for line in results]])
    done = run.program("dry.py", "--dry-run", "--port", "0", "--what", "environment")
    line = logs.with_message(done.stderr, "dry run result") or {"fields": {"message": ""}}
    run.see("of the first worker's environment", '"result_size": 12' in line["fields"]["message"], spec=True)
    done = run.program("dry.py", "--port", "0", env={"MOSEC_DRY_RUN": "true"})
    run.see("by the environment", [done.returncode, "dry run result" in done.stderr], spec=[0, True])
