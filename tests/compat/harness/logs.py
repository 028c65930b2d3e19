"""Reads log lines into a shape that two implementations can be compared by."""

import json
import re
from typing import Any

_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z( ?)$")
_PYTHON_DEBUG = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\s+(\w+) (\w+)::([\w.]+):(\d+) \[(\d+)\]: (.*)$")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def records(text: str) -> list[dict[str, Any]]:
    """The lines that are JSON."""
    found = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def shape(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what varies: its time, and where in a file it was written."""
    stamp = _STAMP.match(record.get("timestamp", ""))
    return {
        "keys": list(record),
        "time": "no time" if stamp is None else "time" + stamp[1],
        "level": record.get("level"),
        "target": re.sub(r":\d+$", "", str(record.get("target"))),
        "fields": sorted(record.get("fields", {})),
    }


def with_message(text: str, part: str) -> dict[str, Any] | None:
    """The first record whose message has this part."""
    return next((one for one in records(text) if part in one.get("fields", {}).get("message", "")), None)


def python_debug(text: str) -> list[tuple[str, str, str, str]]:
    """Level, source, file and message of the lines that Python writes while debugging."""
    found = (_PYTHON_DEBUG.match(line) for line in _COLOUR.sub("", text).splitlines())
    return [(match[1], match[2], match[3], match[6]) for match in found if match]
