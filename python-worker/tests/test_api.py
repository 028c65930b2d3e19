"""Names, numbers, codecs and log lines that services rely on."""

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec
import pytest

import mosec
from mosec import ClientError, DecodingError, EncodingError, ServerError, ValidationError, Worker, runner
from mosec.coordinator import State
from mosec.errors import MosecError, MosecTimeoutError
from mosec.mixin import MsgpackMixin, TypedMsgPackMixin
from mosec.protocol import HTTPStatusCode

if TYPE_CHECKING:
    from nowhere import Missing


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


def test_the_family_of_errors() -> None:
    assert DecodingError.__bases__ == (ClientError,) and EncodingError.__bases__ == (ServerError,)
    for error in (ClientError, ValidationError, ServerError):
        assert error.__bases__ == (MosecError,)
    assert not issubclass(MosecTimeoutError, Exception)


def test_the_numbers_of_the_status_words() -> None:
    assert {word.name: word.value for word in HTTPStatusCode} == {
        "OK": 1,
        "BAD_REQUEST": 2,
        "VALIDATION_ERROR": 4,
        "INTERNAL_ERROR": 8,
        "TIMEOUT_ERROR": 16,
        "STREAM_EVENT": 32768,
    }


def test_the_bits_of_a_state() -> None:
    assert {bit.name: bit.value for bit in State} == {"INGRESS": 1, "EGRESS": 2}
    assert (runner.INGRESS, runner.EGRESS) == (State.INGRESS, State.EGRESS)


def test_what_is_exported_exists() -> None:
    assert all(hasattr(mosec, name) for name in mosec.__all__)


def test_json_is_mosecs() -> None:
    worker = Echo()
    assert worker.deserialize(b"") == {}
    assert worker.deserialize(bytearray(b'{"a": NaN}'))["a"] != 0
    assert worker.serialize([1, {"é": float("nan")}]) == b'[\n  1,\n  {\n    "\\u00e9": NaN\n  }\n]'
    for wrong in (b"{", b"\xff\xfe\xfd", b"[" * 100_000):
        with pytest.raises(DecodingError, match="^$"):
            worker.deserialize(wrong)
    with pytest.raises(EncodingError, match="^$"):
        worker.serialize({1, 2})


def test_a_value_survives_the_way_between_stages() -> None:
    worker = Echo()
    value = {"a": (1, b"x"), "b": {2, 3}}
    assert worker.deserialize_ipc(bytearray(worker.serialize_ipc(value))) == value


def test_forward_must_be_defined() -> None:
    with pytest.raises(TypeError):
        Worker()  # type: ignore[abstract]


def test_importing_touches_no_arguments() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import mosec; print('imported')", "--help", "--port", "abc"],
        env={"PYTHONPATH": mosec.__path__[0].removesuffix("/mosec"), "MOSEC_LOG_LEVEL": "foo"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported\n", "")


def test_msgpack_arrays_arrive_as_tuples() -> None:
    worker = type("Packed", (MsgpackMixin, Echo), {})()
    assert worker.deserialize(bytearray(msgpack.packb({"a": [1, 2]}))) == {"a": (1, 2)}
    assert msgpack.unpackb(worker.serialize({"a": [1]})) == {"a": [1]}
    assert type(worker).resp_mime_type == "application/msgpack"
    with pytest.raises(DecodingError):
        worker.deserialize(b"\xc1")
    with pytest.raises(EncodingError):
        worker.serialize(object())


class Point(msgspec.Struct):
    a: int


class Typed(TypedMsgPackMixin):
    def forward(self, data: Point) -> int:
        return data.a


class TypedList(TypedMsgPackMixin):
    def forward(self, data: list[Point]) -> list[int]:
        return [point.a for point in data]


def test_typed_requests_are_checked() -> None:
    worker = Typed()
    assert worker.deserialize(msgpack.packb({"a": 1})) == Point(1)
    with pytest.raises(ValidationError, match=r"^Expected `int`, got `str` - at `\$.a`$"):
        worker.deserialize(msgpack.packb({"a": "x"}))
    with pytest.raises(DecodingError):
        worker.deserialize(b"\xc1")
    assert worker.serialize(5) == b"\x05"


@pytest.mark.parametrize(("size", "body"), [(1, [{"a": 1}]), (4, {"a": 1})])
def test_a_list_is_unwrapped_where_the_stage_batches(size: int, body: Any) -> None:
    worker = TypedList()
    worker.max_batch_size = size
    assert worker.deserialize(msgpack.packb(body)) == ([Point(1)] if size == 1 else Point(1))


class ForCheckers(TypedMsgPackMixin):
    def forward(self, data: "Point", more: "Missing" = None) -> "Missing":
        return data


def test_a_name_for_type_checkers_alone_harms_no_other_annotation() -> None:
    assert ForCheckers().deserialize(msgpack.packb({"a": 1})) == Point(1)


LOGGING = """
import mosec
logger = mosec.get_logger()
def work():
    logger.info("hello %s", "you")
    logger.debug("details")
    try: 1 / 0
    except ZeroDivisionError: logger.exception("failed")
work()
"""


def test_log_lines_are_json(tmp_path: Any, python_path: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(LOGGING)
    done = subprocess.run([sys.executable, script], env={"PYTHONPATH": python_path}, capture_output=True, text=True)
    first, second = map(json.loads, done.stderr.splitlines())
    assert first.pop("timestamp").endswith("Z ")
    assert first == {"level": "INFO", "fields": {"message": "hello you"}, "target": "user::script.py:work"}
    assert second["level"] == "ERROR" and "ZeroDivisionError" in second["fields"]["exc_info"]


def test_log_lines_at_debug_are_text(tmp_path: Any, python_path: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(LOGGING)
    done = subprocess.run(
        [sys.executable, script, "--log-level", "debug"],
        env={"PYTHONPATH": python_path},
        capture_output=True,
        text=True,
    )
    assert "DEBUG" in done.stderr and "details" in done.stderr and "Traceback" in done.stderr
