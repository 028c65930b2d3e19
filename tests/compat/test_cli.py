"""The command line and the environment, and what the API refuses."""

import gzip
import json
import re
import socket
from typing import Any

from harness import ABSENT, ANY, Difference, Run, case

NOT_A_WORKER = "AssertionError: worker must be inherited from mosec.Worker"
MORE = "announced: more than MOSEC offers, after what it offers"
CLEAR = "announced: what is refused is refused with a text that says why"


@case(
    differs=[
        Difference("seen / append / num *", re.compile("TypeError: .*"), re.compile("AssertionError: .*"), CLEAR),
        Difference("seen / runtime / num *", re.compile("TypeError: .*"), re.compile("AssertionError: .*"), CLEAR),
        Difference("seen / append / an instance", re.compile("AttributeError: .*"), NOT_A_WORKER, CLEAR),
        Difference("seen / append / a name", re.compile("AttributeError: .*"), NOT_A_WORKER, CLEAR),
        Difference("seen / runtime / an instance", re.compile("AttributeError: .*"), NOT_A_WORKER, CLEAR),
        Difference("seen / runtime / a name", re.compile("AttributeError: .*"), NOT_A_WORKER, CLEAR),
        Difference("seen / append / timeout text", ANY, re.compile("AssertionError: .* must be a number .*"), CLEAR),
        Difference("seen / runtime / timeout text", ANY, re.compile("AssertionError: .* must be a number .*"), CLEAR),
        Difference("seen / register / one runtime twice", None, re.compile("ValueError: .*"), "announced: no circles"),
        *(
            Difference(f"seen / run / {name}", re.compile("ValueError: .*"), re.compile("ValueError: .*"), CLEAR)
            for name in ("template", "no slash")
        ),
        Difference("seen / all", ANY, lambda names: "Context" in names, MORE),
        Difference("seen / bases / Context", ABSENT, ANY, MORE),
        *(
            Difference(f"seen / parameters / {name}", ANY, lambda given: given[-1] == "batching='window'", MORE)
            for name in ("Server.append_worker", "Runtime.__init__")
        ),
    ]
)
def test_api(run: Run) -> None:
    """Names, signatures, defaults and refusals."""
    done = run.program("api.py")
    run.see("exit code", [done.returncode, done.stderr[-1500:]], spec=[0, ""])
    run.see("seen", json.loads(done.stdout))


def told(run: Run, *options: str, env: dict[str, str] | None = None) -> Any:
    """What a service without workers says of its options, or how it ended."""
    done = run.program("options.py", "--port", "0", *options, env=env)
    return json.loads(done.stdout) if done.stdout.startswith("{") else {"exit code": done.returncode}


@case(
    differs=[
        Difference("no debug by environment / level", 10, 20, "D14: false is false"),
        Difference("no debug by environment / warnings", ["DeprecationWarning"], [], "D14: false is false"),
        Difference("bad level in the environment / exit code", 1, ABSENT, "D17: as any value that cannot be read"),
        Difference("bad level in the environment / warnings", ABSENT, ["RuntimeWarning"], "D17"),
        Difference("bad level in the environment / level", ABSENT, 20, "D17"),
        Difference("nothing for a number / exit code", ABSENT, 2, CLEAR),
        Difference("nothing for a number / level", 20, ABSENT, CLEAR),
        Difference("nothing for a number / warnings", [], ABSENT, CLEAR),
        Difference("too high a port / exit code", 1, 2, CLEAR),
    ],
)
def test_levels(run: Run) -> None:
    """Log level by option and environment, with the deprecated flags."""
    given: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
        "default": ((), {}),
        "option": (("--log-level", "error"), {}),
        "environment": ((), {"MOSEC_LOG_LEVEL": "warning"}),
        "option over environment": (("--log-level", "error"), {"MOSEC_LOG_LEVEL": "debug"}),
        "debug": (("--debug",), {}),
        "debug over level": (("--debug", "--log-level", "error"), {}),
        "debug by environment": ((), {"MOSEC_DEBUG": "1"}),
        "no debug by environment": ((), {"MOSEC_DEBUG": "false"}),
        "empty environment": ((), {"MOSEC_LOG_LEVEL": "", "MOSEC_DEBUG": "", "MOSEC_TIMEOUT": ""}),
        "wait": (("--wait", "20"), {}),
        "no wait": (("--wait", "0"), {}),
        "nothing for a number": (("--timeout", "0"), {}),
        "too high a port": (("--port", "70000"), {}),
        "bad number in the environment": ((), {"MOSEC_TIMEOUT": "soon"}),
        "unknown options": (("--unknown", "x", "rest"), {}),
        "abbreviation": (("--log", "error"), {}),
        "bad number": (("--timeout", "soon"), {}),
        "bad port": (("--port", "x"), {}),
        "bad level": (("--log-level", "loud"), {}),
        "bad level in the environment": ((), {"MOSEC_LOG_LEVEL": "loud"}),
        "ambiguous": (("--p", "1"), {}),
    }
    for key, (options, env) in given.items():
        run.see(key, told(run, *options, env=env))


@case()
def test_environment(run: Run) -> None:
    """Each option by its variable, seen from outside; the command line wins."""
    env = {
        "MOSEC_NAMESPACE": "by_environment",
        "MOSEC_CAPACITY": "1",
        "MOSEC_TIMEOUT": "700",
        "MOSEC_MAX_REQUEST_SIZE": "50",
        "MOSEC_ADDRESS": "127.0.0.1",
        "MOSEC_PORT": "1",
    }
    with run.serve("actor.py", "--limit", "9", env=env) as service:
        run.see("namespace", "by_environment_remaining_task" in service.get("/metrics").body.decode(), spec=True)
        run.see("size", service.post(b"1" * 51).status, spec=413)
        calls = [service.later(service.post, b'{"wait for": "go", "note": "x"}')]
        service.notes("started", 1)
        calls += [service.later(service.post, b"1") for _ in range(6)]
        run.see("timeout and capacity", sorted({call.result().status for call in calls}), spec=[408, 429])
        service.release("go")
    options = ("--namespace", "by_option", "--max-request-size", "60", "--addr", "0.0.0.0")
    with run.serve("actor.py", *options, env=env) as service:
        run.see("namespace by option", "by_option_remaining_task" in service.get("/metrics").body.decode(), spec=True)
        run.see("size by option", service.post(b" " * 54 + b"1").short(), spec="200 1")


@case()
def test_port_in_use(run: Run) -> None:
    """A port that somebody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run.program("options.py", "--address", "127.0.0.1", "--port", str(port))
        last = done.stderr.strip().splitlines()[-1].replace(str(port), "<port>")
        said = "RuntimeError: 127.0.0.1:<port> is in use. Please change to a free one (use `--port`)."
        run.see("error", [done.returncode, last], spec=[1, said])
        env = {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": str(port)}
        done = run.program("options.py", env=env)
        last = done.stderr.strip().splitlines()[-1].replace(str(port), "<port>")
        run.see("by the environment", [done.returncode, last], spec=[1, said])


@case(
    differs=[
        Difference("help of a program that imports mosec", [0, False], [0, True], "D17: an import takes no options"),
        Difference("bad option of a program that imports mosec", [2, False], [0, True], "D17"),
        Difference("bad level of the environment", [1, False], [0, True], "D17"),
    ]
)
def test_import(run: Run) -> None:
    """`import mosec` in a program with options of its own."""
    source = "import mosec, sys; print('own', sys.argv[1:])"
    for key, options, env in (
        ("import", (), {}),
        ("help of a program that imports mosec", ("--help",), {}),
        ("bad option of a program that imports mosec", ("--port", "x"), {}),
        ("bad level of the environment", (), {"MOSEC_LOG_LEVEL": "loud"}),
    ):
        done = run.program("-c", source, *options, env=env)
        run.see(key, [done.returncode, "own" in done.stdout])


def answers_ipv6(port: int) -> bool:
    with socket.socket(socket.AF_INET6) as client:
        return client.connect_ex(("::1", port)) == 0


@case(
    differs=[
        Difference("name", "refused ", "200 1", "D16: names are resolved"),
        Difference("IPv6", False, True, "D16: IPv6"),
    ]
)
def test_address(run: Run) -> None:
    """Addresses other than IPv4 literals."""
    with run.serve("options.py", "--address", "127.0.0.1", env={"COMPAT_RUN": "1"}) as service:
        run.see("loopback", service.post(b"1").short(), spec="200 1")
    with run.serve("options.py", "--address", "localhost", env={"COMPAT_RUN": "1"}, wait=False) as service:
        service.until(lambda: service.process.poll() is not None or service.get("/").status == 200)
        run.see("name", service.post(b"1").short(), spec="refused ")
    with run.serve("options.py", "--address", "::1", env={"COMPAT_RUN": "1"}, wait=False) as service:
        service.until(lambda: service.process.poll() is not None or answers_ipv6(service.port))
        run.see("IPv6", answers_ipv6(service.port), spec=False)


@case(differs=[Difference("--reload", ABSENT, True, MORE)])
def test_help(run: Run) -> None:
    """`--help` names the options and ends with 0."""
    done = run.program("options.py", "--help")
    run.see("exit code", done.returncode, spec=0)
    for option in sorted(set(re.findall(r"--[a-z][a-z-]*", done.stdout))):
        run.see(option, True)


@case(
    differs=[
        Difference("compression", "400 decoding error: decoding error", "200 1", "D14: every switch has a variable"),
        Difference("no dry run", "refused", 200, "D14: false is false"),
    ]
)
def test_switches_in_the_environment(run: Run) -> None:
    """What is on or off, by a variable."""
    with run.serve("actor.py", env={"MOSEC_COMPRESSION": "true"}) as service:
        packed = service.post(gzip.compress(b"1"), headers={"content-encoding": "gzip"})
        run.see("compression", packed.short())
    with run.serve("dry.py", env={"MOSEC_DRY_RUN": "false"}, wait=False) as service:
        service.until(lambda: service.process.poll() is not None or service.get("/").status == 200)
        run.see("no dry run", service.get("/").status)
