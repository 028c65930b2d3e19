"""The default codecs of a worker give what the standard library gives: the same values, bytes and errors."""

import gc
import json
import math
import sys
from collections import OrderedDict, UserString, namedtuple
from collections.abc import Iterator
from enum import Enum, IntEnum
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mosec import DecodingError, EncodingError, Worker

native = pytest.importorskip("mosec._native", reason="the extension is not built: `make wheel-dev` installs it")

# No deadline: how long an example takes says nothing on a busy machine.
thorough = settings(max_examples=400, deadline=None, database=None, print_blob=True)


class Plain(Worker):
    def forward(self, data: Any) -> Any:
        return data


WORKER = Plain()


def outcome(encode: Any, value: Any) -> Any:
    """What comes out of it: bytes, or type and text of the error."""
    try:
        return encode(value)
    except Exception as error:
        return type(error), str(error)


def by_library(value: Any) -> Any:
    return outcome(lambda value: json.dumps(value, indent=2).encode(), value)


def by_worker(value: Any) -> Any:
    """A worker hides the error itself from clients, but keeps it as the cause."""

    def encode(value: Any) -> bytes:
        try:
            return WORKER.serialize(value)
        except EncodingError as error:
            assert str(error) == "" and error.__cause__ is not None
            raise error.__cause__ from None

    return outcome(encode, value)


def nested(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def containers(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(items) | st.lists(items).map(tuple) | st.dictionaries(keys, items)

    return st.recursive(leaves, containers, max_leaves=30)


class Number(IntEnum):
    ONE = 1


class Text(str):
    pass


Pair = namedtuple("Pair", "left right")
# Biased to where formats change: powers, and halves between them.
floats = st.floats() | st.builds(lambda m, e: float(f"{m}e{e}"), st.integers(-999, 999), st.integers(-330, 308))
known = st.none() | st.booleans() | st.integers(-(2**126), 2**126) | floats | st.text()
odd = st.sampled_from([Number.ONE, Text("ö"), Pair(1, 2), {1, 2}, b"x", 1j, object, UserString("u"), "\ud800"])
any_text = st.text(st.characters(exclude_categories=()))


@thorough
@given(nested(known, known))
def test_values_of_built_in_types_are_written_natively(value: Any) -> None:
    assert native.encode_json(value) == by_library(value)
    assert WORKER.serialize(value) == by_library(value)


@thorough
@given(
    nested(known | any_text | odd | st.integers() | st.fractions(), known | any_text | st.just(b"x") | st.just((1,)))
)
def test_any_value_has_the_library_s_bytes_or_errors(value: Any) -> None:
    assert by_worker(value) == by_library(value)


@thorough
@given(any_text)
@example("\ud83d\ude00")  # two halves that Python keeps apart
@example("0123456789abcde\x7f")
@example('0123456789abcdef"')
def test_texts(value: str) -> None:
    assert by_worker(value) == by_library(value)


def test_powers_and_their_neighbours() -> None:
    powers = [2.0**exponent for exponent in range(-1074, 1024)] + [
        float(f"1e{exponent}") for exponent in range(-323, 309)
    ]
    near = [math.nextafter(power, toward) for power in powers for toward in (0, math.inf)]
    assert native.encode_json(powers + near) == by_library(powers + near)


def deep(levels: int, bottom: Any = 0) -> Any:
    value = bottom
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


def cycle() -> Any:
    value: list[Any] = [1]
    value.append({"again": (value,)})
    return value


def wide_cycle() -> Any:
    value: list[Any] = []
    value.extend([value] * 10)
    return value


SHARED = [1, {"x": []}]

WRITTEN_NATIVELY = [
    *(None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**64, 2**126, -(2**126)),
    *(0.0, -0.0, 1.0, 1e15, 1e16, 123456789012345678.0, 1e22, 1e-4, 1.5e-4, 1e-5, 1.25e-5, 9.9e-5, 1e-6, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), sys.float_info.max, sys.float_info.min),
    *(
        "",
        "a",
        '"\\/',
        "\b\f\n\r\t\0\x1f\x7f\x80",
        "é",
        "\u2028\u2029",
        "漢字",
        "😀",
        "\uffff\U00010000\U0010ffff",
        "x" * 999,
    ),
    *([], (), {}, [[]], [{}], ((),), {"a": {}}, {"a": [1, (2, [3])]}, [SHARED, SHARED, {"again": SHARED}]),
    {1: 1, "1": 2, 1.5: 3, None: 5, float("inf"): 6, 2**70: 7, "": 8, -0.0: 9},
    {True: -1, False: 0, 1e100: 1, float("nan"): 2},
    {key: None for key in ("b", "a", "ä")},
    deep(100),
    deep(99, []),
]

LEFT_TO_THE_LIBRARY = [
    *(2**127, -(2**127), 10**400, "\ud800", "a\udc00b", {"\ud800": 1}),
    *(10**5000, {10**5000: 1}),  # over the interpreter's limit of digits
    *(Number.ONE, [Number.ONE], Text("é"), {Text("k"): 1}, {Number.ONE: 1}, OrderedDict(b=1, a=2), Pair(1, [2])),
    *({1}, b"x", bytearray(b"x"), 1j, object, ..., UserString("u"), range(3), iter([1]), {(1, 2): 3}, {b"k": 1}),
    *([1, {2}], {"a": {"b": {3}}}, Enum("Other", "A").A),
    *(cycle(), wide_cycle(), deep(101), deep(300), deep(100_000)),
]


@pytest.mark.parametrize("value", WRITTEN_NATIVELY, ids=lambda value: repr(value)[:30])
def test_a_value_is_written_natively(value: Any) -> None:
    assert native.encode_json(value) == by_library(value)
    assert by_worker(value) == by_library(value)


@pytest.mark.parametrize("value", LEFT_TO_THE_LIBRARY, ids=lambda value: type(value).__name__)
def test_a_value_is_left_to_the_library(value: Any) -> None:
    assert native.encode_json(value) is None
    assert by_worker(value) == by_library(value)


def test_a_subclass_is_not_asked_anything() -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the encoder ran Python code")

    for base in (dict, list, tuple, str, int, float):
        names = (
            "__iter__",
            "__len__",
            "__getitem__",
            "__repr__",
            "__str__",
            "__float__",
            "__index__",
            "__hash__",
            "items",
        )
        members = {name: refuse for name in names if hasattr(base, name)}
        odd = type("Odd", (base,), members)()
        assert native.encode_json([1, {"a": odd}]) is None


@pytest.fixture
def collections() -> Iterator[list[str]]:
    """Grows with each run of the garbage collector, which then runs as often as it can."""
    seen: list[str] = []

    def note(phase: str, _info: Any) -> None:
        seen.append(phase)

    before = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1, 1, 1)
    yield seen
    gc.set_threshold(*before)
    gc.callbacks.remove(note)


def test_nothing_is_made_that_could_run_a_finalizer(collections: list[str]) -> None:
    value = {"a": [1, 2**63, -(2**100), 1.5, "ä", None, True, (), {}, {"b": (1, 2)}], 7: "x" * 10_000}
    encode = native.encode_json
    before = len(collections)
    encode(value)
    after = len(collections)
    assert before == after
    assert collections, "the fixture sees collections at all"


def test_an_answer_leaves_its_value_as_it_was() -> None:
    inner = [object(), "ä", 2**70]
    value = {"a": inner[1:], "b": (inner[2],)}
    counts = [sys.getrefcount(item) for item in (*inner, value["a"], value["b"])]
    for _ in range(100):
        assert native.encode_json(value) is not None
        assert native.encode_json([inner, value]) is None
    assert [sys.getrefcount(item) for item in (*inner, value["a"], value["b"])] == counts


def decoded_by_worker(data: bytes) -> Any:
    try:
        return repr(WORKER.deserialize(bytearray(data)))
    except DecodingError as error:
        assert str(error) == "" and error.__cause__ is not None
        return type(error.__cause__), str(error.__cause__)


def decoded_by_library(data: bytes) -> Any:
    try:
        return repr(json.loads(bytearray(data)))
    except Exception as error:
        return type(error), str(error)


def written(value: Any, ascii_only: bool, indent: int | None, before: str, after: str, encoding: str) -> bytes:
    text = before + json.dumps(value, ensure_ascii=ascii_only, indent=indent) + after
    return text.encode(encoding, "surrogatepass")


space = st.text(" \t\n\r\0\f\u00a0,", max_size=2)
encodings = st.sampled_from(
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
documents = st.builds(
    written, nested(known | any_text, any_text), st.booleans(), st.sampled_from([None, 0, 2]), space, space, encodings
)


@thorough
@given(documents, st.integers(0, 50), st.binary(max_size=3), st.booleans())
def test_any_document_has_the_library_s_value_or_error(data: bytes, at: int, other: bytes, damaged: bool) -> None:
    if damaged:
        data = data[:at] + other + data[at + len(other) :]
    if data:
        assert decoded_by_worker(data) == decoded_by_library(data)


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"1",
            b" 1",
            b"1 ",
            b"1\n",
            b"1\xc2\xa0",
            b"1\x00",
            b"\x001",
            b"1\x00\x00\x00",
            b'"\x00"',
            b'"\n"',
            b"1 2",
            b"{} x",
        ),
        *(
            b'{"a": 1, "a": 2}',
            b"NaN",
            b"-Infinity",
            b"1e999",
            b"-0",
            b"1" * 30,
            b"1" * 5000,
            b"01",
            b"+1",
            b"1.",
            b"{,}",
        ),
        *(
            b'"\\ud800"',
            b'"\\ud83d\\ude00"',
            b'"\xed\xa0\x80"',
            b"\xef\xbb\xbf1",
            b"\xff\xfe1\x00",
            b"\xff",
            b"'a'",
            b"[1,]",
        ),
        *(b"[" * 100_000, b"[" * 500 + b"]" * 500, b"[[[", b" ", b"tru", b"true false", b"nul"),
    ],
    ids=lambda data: repr(data)[:30],
)
def test_a_document_has_the_library_s_value_or_error(data: bytes) -> None:
    assert decoded_by_worker(data) == decoded_by_library(data)


def test_texts_and_bytes_are_taken_as_the_library_takes_them() -> None:
    assert WORKER.deserialize('{"a": 1}') == WORKER.deserialize(b'{"a": 1}') == {"a": 1}  # type: ignore[arg-type]
    assert WORKER.deserialize(memoryview(b'{"a": 1}')) == {"a": 1}  # type: ignore[arg-type]


def test_a_subclass_of_worker_keeps_its_own_codec() -> None:
    class Own(Plain):
        def serialize(self, data: Any) -> bytes:
            return b"own"

    assert Own().serialize([1]) == b"own"
