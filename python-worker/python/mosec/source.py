"""Where a service's code is, and how another process loads it: the two ends of `PythonSource`.

A worker process runs the user's script again under the name `__mp_main__`, as `multiprocessing` does, so the part under
`if __name__ == "__main__"` stays out. Modules `__main__` and `__mp_main__` are then both the script's.
"""

import functools
import importlib
import json
import os
import site
import sys
import sysconfig
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from mosec.worker import Worker

# Tells worker processes where else the script has Python look for modules: before its own folder, and behind.
SEARCH_PATH = "MOSEC_INTERNAL_SEARCH_PATH"


class SourceError(Exception):
    """A worker class that another process could not load."""


def describe_main() -> dict[str, Any]:
    """The running program as a `PythonSource`."""
    folder = os.getcwd()
    script = _main_script()
    if script is not None and script.startswith(os.path.join(folder, "")):
        script = os.path.relpath(script, folder)
    return {"dir": folder, "main": script, "argv": sys.argv[1:], "python": sys.executable or None}


def locate(worker: type[Worker]) -> tuple[str, str]:
    """Module and qualified name by which another process finds the class."""
    module, name = worker.__module__, worker.__qualname__
    if "<locals>" in name:
        raise SourceError(f"{name} is defined inside a function, where worker processes cannot find it")
    if module != "__main__":
        return module, name
    as_module = _main_module()
    if as_module is not None:
        return as_module, name
    if _main_script() is None:
        raise SourceError(f"{name} is not in a file: worker processes cannot load what is typed into an interpreter")
    return module, name


def tell_search_path() -> None:
    """Leaves for the workers what the script has added to `sys.path`, which `multiprocessing` hands on as well.

    Folders below the one that the script runs in are left relative to it: on another node it may be elsewhere.
    """
    script = _main_script()
    own = {"", os.getcwd(), os.path.dirname(script or "")}
    known = own | {os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    known |= {*site.getsitepackages(), site.getusersitepackages()}
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
    start = next((at for at, path in enumerate(sys.path) if path in own), 0)
    added = [
        [
            _relative(os.path.abspath(path))
            for path in part
            if path not in known and not path.startswith(libraries) and os.path.exists(path)
        ]
        for part in (sys.path[:start], sys.path[start:])
    ]
    if any(added):
        os.environ[SEARCH_PATH] = json.dumps(added)
    else:
        os.environ.pop(SEARCH_PATH, None)


def enter(folder: str, main: str | None, argv: Sequence[str]) -> None:
    """Makes this process see what `python main argv...`, started in `folder`, would see."""
    os.chdir(folder)
    sys.argv = [main if main is not None else "", *argv]
    if main is None:
        sys.path.insert(0, folder)
    else:
        # Python puts the script's own folder first; the other one serves what is imported by name alone.
        script_folder = os.path.dirname(os.path.abspath(main))
        sys.path.insert(0, script_folder)
        if script_folder != folder:
            sys.path.append(folder)
    told = json.loads(os.environ.pop(SEARCH_PATH, "[[], []]"))
    before, after = ([os.path.join(folder, path) for path in part] for part in told)
    sys.path[:0] = [path for path in before if path not in sys.path]
    sys.path += [path for path in after if path not in sys.path]


def run_script(path: str, name: str) -> ModuleType:
    """Runs the script as module `name`, which becomes `__main__`."""
    module = ModuleType(name)
    module.__file__ = os.path.abspath(path)
    sys.modules["__main__"] = sys.modules[name] = module
    with open(path, "rb") as file:
        code = compile(file.read(), module.__file__, "exec", dont_inherit=True)
    exec(code, module.__dict__)
    return module


def resolve(module: str, name: str) -> type[Worker]:
    """The worker class; `SourceError` says what was found instead."""
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except AttributeError as error:
        raise SourceError(f"there is no {name} in module {module}: {error}") from error
    if not isinstance(found, type):
        raise SourceError(f"{module}:{name} is not a class but {type(found).__name__} {found!r:.80}")
    if not issubclass(found, Worker):
        raise SourceError(f"{module}:{name} is not a subclass of mosec.Worker")
    missing = ", ".join(sorted(found.__abstractmethods__))
    if missing:
        raise SourceError(f"{module}:{name} does not define {missing}")
    return found


def forget_launch_folder() -> None:
    """Takes away what `python -m` has put first on `sys.path`: the folder that the process was started in."""
    if not sys.flags.safe_path:
        del sys.path[0]


def _relative(path: str) -> str:
    """A path below the working folder as seen from there, any other as it is."""
    folder = os.path.join(os.getcwd(), "")
    return path.removeprefix(folder)


def _main_module() -> str | None:
    """The real name of `__main__` where it was started with `python -m`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    # `python folder` gives its `__main__.py` one as well, under no other name.
    return None if spec is None or spec.name == "__main__" else spec.name


def _main_script() -> str | None:
    """The file of `__main__` where it was started as a script."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    if _main_module() is not None or path is None:
        return None
    path = os.path.abspath(path)
    return path if os.path.isfile(path) else None
