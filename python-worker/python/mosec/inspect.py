"""Reads a service's specification out of its script, without starting it, for `mosectl deploy`.

`python -m mosec.inspect script.py [args]` prints {"spec": ...}, or {"error": ...} and exits with 1.
`python -m mosec.inspect --check module:Class ... [--dir DIR]` prints {"workers": [...]}, one entry for each class, and
exits with 1 if one of them is an error. The result is one JSON object on stdout; what the script prints goes to stderr.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from mosec import server, source
from mosec.mixin.variables import PLASMA_PATH, REDIS_URL
from mosec.worker import SSEWorker, header_names

_EXPECTED = "a script that calls Server.run() when it is run"


class _SpecTaken(BaseException):
    """Ends the script once its specification is known. No `Exception`, so the script does not catch it."""


def main(argv: Sequence[str]) -> int:
    """Writes the result to the real stdout. The exit status."""
    results = os.dup(1)
    os.dup2(2, 1)  # prints of the script, and of libraries below Python, are not the result
    result = _check(argv) if argv[:1] == ["--check"] else inspect_script(argv)
    with os.fdopen(results, "w", encoding="utf-8") as out:
        json.dump(result, out)
        out.write("\n")
    failed = "error" in result or any("error" in worker for worker in result.get("workers", []))
    return 1 if failed else 0


def inspect_script(argv: Sequence[str]) -> dict[str, Any]:
    """Runs the script up to `Server.run()`."""
    if not argv:
        return _error("no script was given", expected="python -m mosec.inspect script.py [args]")
    path = argv[0]
    if not os.path.isfile(path):
        return _error(f"there is no file {path}", file=path, expected=_EXPECTED)
    specs: list[dict[str, Any]] = []

    def take(spec: dict[str, Any]) -> NoReturn:
        specs.append(_with_variables(spec))
        raise _SpecTaken

    server.intercept = take
    source.enter(os.getcwd(), path, argv[1:])
    try:
        source.run_script(path, "__main__")
    except _SpecTaken:
        pass
    except BaseException as error:  # whatever ends the script is the answer
        if not specs:
            return _failed_script(path, error)
    if not specs:
        return _error("never called Server.run()", file=path, expected=_EXPECTED)
    return {"spec": specs[0]}


def _with_variables(spec: dict[str, Any]) -> dict[str, Any]:
    """The specification with what the script has told mixins and Python, which workers here inherit."""
    told = {name: os.environ[name] for name in (REDIS_URL, PLASMA_PATH, source.SEARCH_PATH) if name in os.environ}
    if not told:
        return spec
    stages = [
        stage | {"env": [told | own for own in stage["env"] or [{}] * stage["replicas"]]} for stage in spec["stages"]
    ]
    return spec | {"stages": stages}


def check_worker(place: str) -> dict[str, Any]:
    """Whether a worker process would find the class that `module:Class` names."""
    module, _, name = place.partition(":")
    found: dict[str, Any] = {"module": module, "class": name}
    expected = "module:Class with a subclass of mosec.Worker"
    if not module or not name:
        return found | _error(f"{place!r} does not name a class", expected=expected)
    try:
        worker = source.resolve(module, name)
    except source.SourceError as error:
        return found | _error(str(error), expected=expected)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            return found | _error(f"there is no module {error.name}", expected=expected)
        return found | _failed_import(module, error)
    except BaseException as error:  # the module's own code may raise anything
        return found | _failed_import(module, error)
    try:
        headers = header_names(worker)
    except TypeError as error:
        return found | _error(str(error), expected='names as ["x-user"]')
    streaming = issubclass(worker, SSEWorker)
    return found | {"mime": worker.resp_mime_type, "streaming": streaming, "request_headers": headers}


def _check(argv: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m mosec.inspect")
    parser.add_argument("--check", nargs="+", required=True, metavar="module:Class")
    parser.add_argument("--dir", default=".")
    values = parser.parse_args(argv)
    folder = os.path.abspath(values.dir)
    if not os.path.isdir(folder):
        return _error(f"there is no folder {folder}", expected="the folder of the pipeline's code")
    server.intercept = lambda _spec: None
    source.enter(folder, None, [])
    return {"workers": [check_worker(place) for place in values.check]}


def _failed_import(module: str, error: BaseException) -> dict[str, Any]:
    return _error(_name(error), *_place(error, os.getcwd()), expected=f"a module {module} that can be imported")


def _failed_script(path: str, error: BaseException) -> dict[str, Any]:
    file, line = _place(error, os.path.dirname(os.path.abspath(path)), default=path)
    if isinstance(error, SystemExit):
        return _error(f"exited with {error.code!r} before it called Server.run()", file, line, _EXPECTED)
    return _error(_name(error), file, line, _EXPECTED)


def _name(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException, folder: str, default: str | None = None) -> tuple[str | None, int | None]:
    """File and line of the user's code that the error comes from: the innermost frame below `folder`."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return error.filename, error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(os.path.join(folder, ""))]
    return (own[-1].filename, own[-1].lineno) if own else (default, None)


def _error(
    message: str, file: str | None = None, line: int | None = None, expected: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "file": file, "line": line, "expected": expected}}


if __name__ == "__main__":
    # The script takes the place of `__main__`, so this module must be found under its own name.
    from mosec import inspect

    source.forget_launch_folder()
    status = inspect.main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads that the script has started must not keep the process
