"""What `--reload` takes for a change. That it starts the service again is tested with a real one in test_service.py."""

import os
from pathlib import Path

from mosec import reload


def test_only_changes_of_the_services_own_code_count(tmp_path: Path) -> None:
    code = [tmp_path / "server.py", tmp_path / "models" / "first.py"]
    others = [
        tmp_path / "weights.bin",
        tmp_path / "__pycache__" / "server.py",
        tmp_path / ".git" / "hook.py",
        tmp_path / "venv" / "lib" / "package.py",
        tmp_path / "lib" / "site-packages" / "package.py",
    ]
    for path in [*code, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    before = reload.snapshot(tmp_path)
    assert sorted(before) == sorted(map(str, code))
    assert reload.changed(before, reload.snapshot(tmp_path)) == []
    new = tmp_path / "models" / "second.py"
    new.touch()
    os.utime(code[0], ns=(1, 1))
    code[1].unlink()
    for path in others:
        os.utime(path, ns=(1, 1))
    assert reload.changed(before, reload.snapshot(tmp_path)) == sorted(map(str, [code[0], code[1], new]))
