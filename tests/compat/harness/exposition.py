"""Reads Prometheus' text format into a shape that two implementations can be compared by."""

import re
from typing import Any

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)",?')
_PARTS = ("_bucket", "_sum", "_count", "_total")
# Families of this project's own, beside those of the namespace.
_OWN = re.compile(r"^(# (HELP|TYPE) )?(mosec_(agent|build|certificate|dispatch|gateway|link)|process)_")

Families = dict[str, dict[str, Any]]


def lines(text: str) -> list[str]:
    """The lines, without those of this project's own families."""
    return [line for line in text.splitlines() if not _OWN.match(line)]


def has_own(text: str) -> bool:
    return any(_OWN.match(line) for line in text.splitlines())


def families(text: str) -> Families:
    """Per family its type, help and series; sums are left out, bucket counts reduced to their bounds.

    A counter is declared by the name of its samples or, as OpenMetrics has it, without `_total`; both are one family.
    """
    found: Families = {}
    for line in lines(text):
        if line.startswith("# ") and line != "# EOF":
            _, kind, name, rest = line.split(" ", 3)
            found.setdefault(name.removesuffix("_total"), {})[kind] = rest
        elif match := _SAMPLE.match(line):
            _add(found, *match.groups(default=""))
    return found


def _add(found: Families, name: str, labels: str, value: str) -> None:
    part = next((part for part in _PARTS if name.endswith(part)), "")
    family = found.setdefault(name.removesuffix(part) if name.removesuffix(part) in found else name, {})
    pairs = dict(_LABEL.findall(labels))
    bound = pairs.pop("le", None)
    key = ",".join(f"{label}={pairs[label]}" for label in sorted(pairs))
    if part == "_bucket":
        family.setdefault(f"bounds {{{key}}}", []).append(bound)
    elif part != "_sum":
        family[f"{part.removeprefix('_') or 'value'} {{{key}}}"] = float(value)
