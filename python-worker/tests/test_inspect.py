"""Reading a service's specification out of its script, and checking the classes of a manifest."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SERVICE = """
import argparse, os, sys, threading
parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
from mosec import Server, Worker
import helper

print("hello from the script")
os.system("echo hello from a child")

class Echo(Worker):
    def forward(self, data):
        return data

class Batch(Echo):
    resp_mime_type = "text/plain"

if __name__ == "__main__":
    values, _ = parser.parse_known_args()
    threading.Thread(target=threading.Event().wait).start()
    assert sys.modules["__main__"].Echo is Echo
    server = Server()
    server.append_worker(Echo)
    server.append_worker(Batch, max_batch_size=int(values.model))
    server.run()
    print("run returned")
"""


def inspect(folder: Path, python_path: str, *argv: str) -> tuple[int, Any, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mosec.inspect", *argv],
        cwd=folder,
        env={"PYTHONPATH": python_path, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    (line,) = done.stdout.splitlines()
    return done.returncode, json.loads(line), done.stderr


def test_a_script_is_read_without_being_started(tmp_path: Path, python_path: str) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "server.py").write_text(SERVICE)
    (tmp_path / "app" / "helper.py").write_text("")
    status, result, errors = inspect(tmp_path, python_path, "app/server.py", "--model", "8", "--port", "80")
    assert status == 0, errors
    spec = result["spec"]
    assert spec["source"] == {
        "dir": str(tmp_path),
        "main": "app/server.py",
        "argv": ["--model", "8", "--port", "80"],
        "python": sys.executable,
    }
    found = [(stage["name"], stage["module"], stage["class"], stage["mime"]) for stage in spec["stages"]]
    assert found == [
        ("Echo_1", "__main__", "Echo", "application/json"),
        ("Batch_2", "__main__", "Batch", "text/plain"),
    ]
    assert spec["stages"][1]["max_batch_size"] == 8
    assert "hello from the script" in errors and "hello from a child" in errors and "run returned" not in errors


def test_a_module_started_as_one_is_named_by_its_real_name(tmp_path: Path, python_path: str) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "serve.py").write_text(
        "import json\nfrom mosec import Server, Worker, server\n"
        "class Echo(Worker):\n    def forward(self, data): return data\n"
        "if __name__ == '__main__':\n"
        "    server.intercept = lambda spec: print(json.dumps(spec))\n"
        "    s = Server()\n    s.append_worker(Echo)\n    s.run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pkg.serve"],
        cwd=tmp_path,
        env={"PYTHONPATH": python_path},
        capture_output=True,
        text=True,
    )
    spec = json.loads(done.stdout)
    assert spec["source"]["main"] is None
    assert (spec["stages"][0]["module"], spec["stages"][0]["class"]) == ("pkg.serve", "Echo")


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("x = 1", "never called Server.run()", None),
        ("import absent_module", "ModuleNotFoundError: No module named 'absent_module'", 1),
        ("x = 1\ndef broken(:\n", "SyntaxError", 2),
        ("import helper\n\nhelper.fail()", "ValueError: from the helper", 2),
        ("import sys\nsys.exit(4)", "exited with 4 before it called Server.run()", 2),
        ("from mosec import Server\n\nServer().run()", "AssertionError", 3),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", 1),
    ],
)
def test_a_script_that_gives_no_specification(
    tmp_path: Path, python_path: str, text: str, message: str, line: int | None
) -> None:
    (tmp_path / "server.py").write_text(text)
    (tmp_path / "helper.py").write_text("def fail():\n    raise ValueError('from the helper')\n")
    status, result, _ = inspect(tmp_path, python_path, "server.py")
    error = result["error"]
    assert status == 1 and message in error["message"]
    assert error["line"] == line
    assert Path(error["file"]).name == ("helper.py" if "helper" in message else "server.py")
    assert error["expected"] == "a script that calls Server.run() when it is run"


@pytest.mark.parametrize(
    ("argv", "message"), [(["absent.py"], "there is no file absent.py"), ([], "no script was given")]
)
def test_a_script_that_is_not_there(tmp_path: Path, python_path: str, argv: list[str], message: str) -> None:
    status, result, _ = inspect(tmp_path, python_path, *argv)
    assert status == 1 and result["error"]["message"] == message


WORKERS = """
from mosec import Worker

class Good(Worker):
    resp_mime_type = "image/png"
    def forward(self, data): return data

class Outer:
    class Inner(Good): pass

class Abstract(Worker): pass

class Other: pass

good = Good()

def make():
    class Hidden(Good): pass
    return Hidden
"""


def test_the_classes_of_a_manifest(tmp_path: Path, python_path: str) -> None:
    (tmp_path / "workers.py").write_text(WORKERS)
    (tmp_path / "broken.py").write_text("import workers\nimport absent_module\n")
    places = {
        "workers:Good": None,
        "workers:Outer.Inner": None,
        "workers:Absent": "there is no Absent in module workers",
        "workers:Hidden": "there is no Hidden in module workers",
        "workers:good": "workers:good is not a class",
        "workers:Other": "workers:Other is not a subclass of mosec.Worker",
        "workers:Abstract": "workers:Abstract does not define forward",
        "absent:Good": "there is no module absent",
        "workers.absent:Good": "there is no module workers",
        "broken:Good": "ModuleNotFoundError: No module named 'absent_module'",
        "workers": "'workers' does not name a class",
    }
    status, result, _ = inspect(tmp_path.parent, python_path, "--check", *places, "--dir", str(tmp_path))
    assert status == 1
    for (place, message), found in zip(places.items(), result["workers"], strict=True):
        module, _, name = place.partition(":")
        assert (found["module"], found["class"]) == (module, name)
        if message is None:
            assert found["mime"] == "image/png" and "error" not in found
        else:
            assert message in found["error"]["message"] and found["error"]["expected"], place
    broken = result["workers"][9]["error"]
    assert (Path(broken["file"]).name, broken["line"]) == ("broken.py", 2)


def test_good_classes_give_a_good_status(tmp_path: Path, python_path: str) -> None:
    (tmp_path / "workers.py").write_text(WORKERS)
    status, result, _ = inspect(tmp_path, python_path, "--check", "workers:Good")
    good = {"module": "workers", "class": "Good", "mime": "image/png", "streaming": False, "request_headers": []}
    assert (status, result) == (0, {"workers": [good]})


def test_a_folder_that_is_not_there(tmp_path: Path, python_path: str) -> None:
    status, result, _ = inspect(tmp_path, python_path, "--check", "workers:Good", "--dir", "absent")
    assert status == 1 and "there is no folder" in result["error"]["message"]


def test_where_a_script_has_python_look_goes_with_its_stages(tmp_path: Path, python_path: str) -> None:
    for folder in ("first", "last"):
        (tmp_path / folder).mkdir()
    (tmp_path / "first" / "stages.py").write_text(
        "from mosec import Worker\nclass Echo(Worker):\n    def forward(self, data): return data\n"
    )
    (tmp_path / "server.py").write_text(
        """
import sys
from mosec import Server

if __name__ == "__main__":
    sys.path.insert(0, "first")
    sys.path += ["last", "absent"]
    from stages import Echo
    server = Server()
    server.append_worker(Echo)
    server.run()
"""
    )
    status, result, errors = inspect(tmp_path, python_path, "server.py")
    assert status == 0, errors
    (variables,) = result["spec"]["stages"][0]["env"]
    folders = [["first"], ["last"]]  # of the script's own folder, wherever it is
    assert {name: json.loads(value) for name, value in variables.items()} == {"MOSEC_INTERNAL_SEARCH_PATH": folders}


def test_what_a_script_tells_mixins_goes_with_its_stages(tmp_path: Path, python_path: str) -> None:
    """Workers on this machine inherit it; those of a cluster get it as variables, and nothing else."""
    (tmp_path / "server.py").write_text(
        """
import os
from mosec import Server, Worker
from mosec.mixin.variables import PLASMA_PATH, REDIS_URL

class Echo(Worker):
    def forward(self, data):
        return data

if __name__ == "__main__":
    os.environ["OTHER"] = "stays"
    os.environ[REDIS_URL] = "redis://there"
    os.environ[PLASMA_PATH] = "/tmp/there"
    server = Server()
    server.append_worker(Echo, num=2)
    server.append_worker(Echo, env=[{"OWN": "1", REDIS_URL: "redis://own"}])
    server.run()
"""
    )
    status, result, errors = inspect(tmp_path, python_path, "server.py")
    assert status == 0, errors
    told = {"MOSEC_INTERNAL_REDIS_URL": "redis://there", "MOSEC_INTERNAL_PLASMA_PATH": "/tmp/there"}
    assert [stage["env"] for stage in result["spec"]["stages"]] == [
        [told, told],
        [told | {"OWN": "1", "MOSEC_INTERNAL_REDIS_URL": "redis://own"}],
    ]
