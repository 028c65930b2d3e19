"""Cases: a script, what it saw on each side, and the differences that are known."""

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .sides import CLUSTER, OURS

if TYPE_CHECKING:
    from .run import Run


class _Marker:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


# Stands for a key that a side did not see, and for a value that does not matter.
ABSENT = _Marker("nothing")
ANY = _Marker("anything")
# The last thing seen by a script that failed.
FAILED = "the script failed"
Seen = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """A place where this project does not do what MOSEC does, and why.

    `key`: of the observation; `*` stands for anything. Values: as seen, a pattern that matches all of a text, a
    predicate, `ABSENT` or `ANY`. `because` begins with the number of MOSEC's defect, or with "announced".
    """

    key: str
    reference: Any
    ours: Any
    because: str
    # Whether MOSEC itself does now this, now that: then it is no news if the difference does not occur.
    sometimes: bool = False

    def allows(self, reference: Any, ours: Any) -> bool:
        return _is_like(reference, self.reference) and _is_like(ours, self.ours)


@dataclass(frozen=True)
class Gap:
    """A place where this project does not yet do what MOSEC does. Fails as soon as it does."""

    key: str
    what: str


@dataclass
class Case:
    """One script and what is known about its outcome."""

    script: Callable[["Run"], None]
    differs: list[Difference] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    # Where this project's half runs.
    side: str = OURS

    def problems(self, reference: Seen, ours: Seen) -> list[str]:
        """What was seen and is not listed, and what is listed and was not seen."""
        unequal = {key: pair for key, pair in _pairs(reference, ours) if pair[0] != pair[1]}
        if FAILED in unequal:  # what a side saw no more is not worth a line each
            unequal = {key: pair for key, pair in unequal.items() if key == FAILED or ABSENT not in pair}
        found, used = [], set()
        for key, pair in unequal.items():
            differences = [entry for entry in self.differs if fnmatch.fnmatchcase(key, entry.key)]
            gaps = [entry for entry in self.gaps if fnmatch.fnmatchcase(key, entry.key)]
            used.update(id(entry) for entry in differences)
            if any(entry.allows(*pair) for entry in differences):
                continue
            used.update(id(entry) for entry in gaps)
            if not gaps:
                listed = "not as listed: " if differences else ""
                found.append(f"{key}: {listed}reference {_brief(pair[0])}, ours {_brief(pair[1])}")
        unfinished = FAILED in unequal and any(fnmatch.fnmatchcase(FAILED, gap.key) for gap in self.gaps)
        for entry in self.gaps if unfinished else (*self.differs, *self.gaps):
            if id(entry) not in used and not getattr(entry, "sometimes", False):
                kind = "difference" if isinstance(entry, Difference) else "gap"
                found.append(f"{entry.key}: a listed {kind} that is no more, take it off the list")
        return found


def case(differs: Iterable[Difference] = (), gaps: Iterable[Gap] = ()) -> Callable[[Callable[["Run"], None]], Any]:
    """Makes a test of a script; see conftest.py for how it is run."""

    return lambda script: _test(Case(script, list(differs), list(gaps)))


def on_cluster(test: Any, differs: Iterable[Difference] = (), gaps: Iterable[Gap] = ()) -> Any:
    """Makes of a test the same one for the service deployed on a cluster, with what differs there beside."""
    case = test.case
    return _test(Case(case.script, [*case.differs, *differs], [*case.gaps, *gaps], CLUSTER))


def _test(made: Case) -> Any:
    def test(outcomes: Any) -> None:
        outcomes.check(made)

    test.__name__, test.__doc__ = made.script.__name__, made.script.__doc__
    test.case = made  # type: ignore[attr-defined]
    return test


def flatten(key: str, value: Any) -> Seen:
    """A value with its parts under keys of their own, so that differences can name them."""
    if hasattr(value, "seen"):
        value = value.seen()
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, part in value.items() for k, v in flatten(f"{key} / {name}", part).items()}


def _pairs(reference: Seen, ours: Seen) -> Iterable[tuple[str, tuple[Any, Any]]]:
    for key in dict.fromkeys((*reference, *ours)):
        yield key, (reference.get(key, ABSENT), ours.get(key, ABSENT))


def _is_like(value: Any, wanted: Any) -> bool:
    if wanted is ANY:
        return True
    if isinstance(wanted, re.Pattern):
        return isinstance(value, str) and wanted.fullmatch(value) is not None
    if callable(wanted):
        return bool(wanted(value))
    return bool(value == wanted)


def _brief(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 600 else f"{shown[:100]} ... {shown[-450:]}"
