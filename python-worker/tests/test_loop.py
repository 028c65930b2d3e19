"""The loop of a worker process: every rule about items, batches, errors and time limits."""

import array
import json
import logging
import pickle
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_channel import BOTH, EGRESS, INGRESS, FakeChannel

from mosec import ClientError, DecodingError, EncodingError, ServerError, ValidationError, Worker
from mosec.errors import MosecError, MosecTimeoutError
from mosec.forward import Forward
from mosec.log import internal_logger
from mosec.protocol import HTTPStatusCode
from mosec.runner import Loop

INFERENCE = (4, b"inference internal error")


def make(forward: Callable[[Any], Any], max_batch_size: int = 1, **overrides: Any) -> Worker:
    methods = {"forward": lambda _self, data: forward(data), **overrides}
    worker = type("Fake", (Worker,), methods)()
    worker.worker_id, worker.stage, worker.max_batch_size = 1, "Fake_1", max_batch_size
    return worker


def serve(worker: Worker, *batches: list[tuple[int, bytes]], timeout: float = 60) -> list[list[tuple[int, bytes]]]:
    return serve_on(FakeChannel(batches), worker, len(batches), timeout)


def serve_on(
    channel: FakeChannel, worker: Worker, batches: int = 1, timeout: float = 60
) -> list[list[tuple[int, bytes]]]:
    forward = Forward(worker)
    loop = Loop(channel, worker, forward, timeout)
    before = signal.signal(signal.SIGALRM, loop.on_alarm)
    try:
        loop.run()
    finally:
        signal.signal(signal.SIGALRM, before)
        forward.close()
    assert channel.events.count("started") == channel.events.count("ended")
    assert sorted(channel.answers) == list(range(1, batches + 1)), "every batch is answered"
    return [channel.answers[number] for number in sorted(channel.answers)]


def one(worker: Worker, body: Any = None, flags: int = BOTH, timeout: float = 60) -> tuple[int, bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return serve(worker, [(flags, data)], timeout=timeout)[0][0]


def batch(worker: Worker, *bodies: Any) -> list[tuple[int, bytes]]:
    items = [(BOTH, body if isinstance(body, bytes) else json.dumps(body).encode()) for body in bodies]
    return serve(worker, items)[0]


def raiser(error: BaseException) -> Callable[[Any], Any]:
    def forward(_data: Any) -> Any:
        raise error

    return forward


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[logging.LogRecord]:
    records: list[logging.LogRecord] = []
    monkeypatch.setattr(internal_logger(), "handle", records.append)
    return records


def test_json_goes_in_and_comes_out_indented() -> None:
    assert one(make(lambda data: data), {"a": [1, "é"]}) == (0, json.dumps({"a": [1, "é"]}, indent=2).encode())


def test_an_empty_payload_is_an_empty_object() -> None:
    assert one(make(lambda data: data), b"") == (0, b"{}")


def test_the_payload_is_a_bytearray() -> None:
    worker = make(lambda data: type(data).__name__, deserialize=lambda _self, data: data)
    assert one(worker, b"x") == (0, b'"bytearray"')


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(
    ("flags", "data", "answer"),
    [
        (BOTH, b"[1]", json.dumps([1], indent=2).encode()),
        (INGRESS, b"[1]", pickle.dumps([1], protocol=pickle.HIGHEST_PROTOCOL)),
        (EGRESS, pickle.dumps([1]), json.dumps([1], indent=2).encode()),
        (0, pickle.dumps([1]), pickle.dumps([1], protocol=pickle.HIGHEST_PROTOCOL)),
    ],
)
def test_the_flags_of_an_item_choose_its_codecs(size: int, flags: int, data: bytes, answer: bytes) -> None:
    assert serve(make(lambda data: data, size), [(flags, data)]) == [[(0, answer)]]


def test_items_of_one_batch_may_differ_in_their_codecs() -> None:
    answers = serve(make(lambda data: data, 4), [(BOTH, b"1"), (0, pickle.dumps(2)), (EGRESS, pickle.dumps(3))])[0]
    assert [code for code, _ in answers] == [0, 0, 0]
    assert [answers[0][1], pickle.loads(answers[1][1]), answers[2][1]] == [b"1", 2, b"3"]


def test_a_stage_that_batches_gets_a_list_even_for_one_item() -> None:
    assert batch(make(lambda data: [repr(data)], 2), 5) == [(0, b'"[5]"')]


def test_a_batch_is_one_forward() -> None:
    calls: list[list[int]] = []

    def forward(data: list[int]) -> list[int]:
        calls.append(list(data))
        return [value * 10 for value in data]

    assert batch(make(forward, 8), 1, 2, 3) == [(0, b"10"), (0, b"20"), (0, b"30")]
    assert calls == [[1, 2, 3]]


def test_without_batching_several_items_are_run_one_by_one() -> None:
    assert batch(make(lambda data: data + 1), 1, b"{", 3) == [
        (0, b"2"),
        (1, b"decoding error: decoding error"),
        (0, b"4"),
    ]


class Custom(ValidationError):
    msg = "custom"
    code = HTTPStatusCode.BAD_REQUEST


class Fine(MosecError):
    msg = "fine"
    code = HTTPStatusCode.OK


class Late(MosecError):
    msg = "late"
    code = HTTPStatusCode.TIMEOUT_ERROR


class Odd(MosecError):
    msg = "odd"
    code = 0


class Unspeakable(MosecError):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ClientError(), (1, b"bad request: bad request")),
        (ClientError("x"), (1, b"bad request: x")),
        (DecodingError("x"), (1, b"decoding error: x")),
        (ValidationError(KeyError("x")), (2, b"request validation error: 'x'")),
        (ValidationError("a", "b"), (2, b"request validation error: ('a', 'b')")),
        (ServerError("s-msg\nline2"), (3, b"internal error: s-msg - line2")),
        (EncodingError("x"), (3, b"encoding error: x")),
        (MosecError(), (3, b"mosec error: mosec error")),
        (MosecTimeoutError("mine"), (5, b"mosec timeout error: mine")),
        (Custom("x"), (1, b"custom: x")),
        (Fine("x"), (0, b"fine: x")),
        (Late("x"), (5, b"late: x")),
        (Odd("x"), (3, b"odd: x")),
        (ValidationError("\ud800"), (2, b"request validation error: ?")),
        (Unspeakable(), INFERENCE),
        (ValueError("secret"), INFERENCE),
        (StopIteration(), INFERENCE),
    ],
)
@pytest.mark.parametrize("size", [1, 4])
def test_what_forward_raises_is_answered(
    error: BaseException, answer: tuple[int, bytes], size: int, lines: list[logging.LogRecord]
) -> None:
    assert batch(make(raiser(error), size), 1, 2) == [answer, answer]
    assert len(lines) == (2 if size == 1 else 1), "each failed forward is reported once"


def test_details_of_a_foreign_error_are_in_the_log_only(lines: list[logging.LogRecord]) -> None:
    assert one(make(raiser(ValueError("secret"))), 1) == INFERENCE
    (line,) = lines
    assert line.levelno == logging.WARNING
    assert "ValueError: secret" in line.getMessage() and "<Fake_1|1>" in line.getMessage()
    assert "\n" not in line.getMessage()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("size", [1, 4])
def test_an_exit_ends_the_process(error: BaseException, size: int) -> None:
    channel = FakeChannel([[(BOTH, b"1")]])
    with pytest.raises(type(error)):
        worker = make(raiser(error), size)
        Loop(channel, worker, Forward(worker), 60).run()
    assert channel.answers == {}


def test_an_item_that_cannot_be_decoded_fails_alone() -> None:
    seen: list[list[int]] = []
    worker = make(lambda data: seen.append(list(data)) or data, 4)
    assert batch(worker, 1, b"{", 3) == [(0, b"1"), (1, b"decoding error: decoding error"), (0, b"3")]
    assert seen == [[1, 3]]


def test_forward_is_not_called_where_nothing_could_be_decoded() -> None:
    assert batch(make(raiser(AssertionError()), 4), b"{", b"[")[1] == (1, b"decoding error: decoding error")


def test_a_foreign_error_in_a_decoder_is_answered() -> None:
    worker = make(lambda data: data, deserialize=lambda _self, data: data[99])
    assert one(worker, b"x") == INFERENCE


def test_an_item_that_cannot_be_encoded_fails_alone() -> None:
    worker = make(lambda data: [{1, 2} if value == 2 else value for value in data], 4)
    assert batch(worker, 1, 2, 3) == [(0, b"1"), (3, b"encoding error: encoding error"), (0, b"3")]


def test_an_exception_in_the_place_of_a_result_fails_that_item() -> None:
    worker = make(lambda data: [data[0], ValidationError("second"), ValueError("third")], 4)
    assert batch(worker, 1, 2, 3) == [(0, b"1"), (2, b"request validation error: second"), INFERENCE]
    assert one(make(lambda _data: ClientError("x")), 1) == (1, b"bad request: x")


@pytest.mark.parametrize(
    "forward",
    [
        lambda data: data[:-1],
        lambda data: data + [1],
        lambda data: None,
        lambda data: 5,
        lambda data: (value for value in data),
        lambda data: data.pop() and data,
    ],
)
def test_a_result_of_another_length_fails_every_item(forward: Callable[[list[int]], Any]) -> None:
    assert batch(make(forward, 4), 1, 2, 3) == [INFERENCE] * 3


def test_a_result_may_be_any_sequence() -> None:
    assert batch(make(tuple, 4), 1, 2) == [(0, b"1"), (0, b"2")]
    assert batch(make(lambda data: array.array("i", data), 4), 1, 2) == [(0, b"1"), (0, b"2")]


@pytest.mark.parametrize("payload", [b"ab", bytearray(b"ab"), memoryview(b"ab"), memoryview(b"a.b.")[::2]])
def test_a_serializer_may_return_any_buffer(payload: Any) -> None:
    assert one(make(lambda _data: 0, serialize=lambda _self, _data: payload), 1) == (0, b"ab")


def test_a_buffer_of_numbers_is_sent_as_its_bytes() -> None:
    numbers = array.array("d", [1.5, 2.5])
    assert one(make(lambda _data: 0, serialize=lambda _self, _data: numbers), 1) == (0, numbers.tobytes())


@pytest.mark.parametrize(("payload", "found"), [("text", b"str"), (None, b"NoneType"), ({}, b"dict")])
@pytest.mark.parametrize("size", [1, 4])
def test_a_serializer_that_returns_no_bytes_fails_the_item(payload: Any, found: bytes, size: int) -> None:
    worker = make(lambda data: data, size, serialize=lambda _self, _data: payload)
    assert one(worker, [1]) == (3, b"encoding error: serialize returned " + found + b", expected bytes")


def overrun(data: Any) -> Any:
    """Runs into a limit of 10 ms and has the alarm rung, as the watchdog does."""
    until = time.monotonic() + 0.02
    while time.monotonic() < until:
        pass
    signal.raise_signal(signal.SIGALRM)
    return data


@pytest.mark.parametrize("size", [1, 4])
def test_a_forward_over_its_limit_is_answered_without_places_in_the_code(size: int) -> None:
    assert one(make(overrun, size), [1], timeout=0.01) == (5, b"mosec timeout error: forward timeout after 0.01s")


def test_the_limit_of_whole_seconds_reads_plainly() -> None:
    worker = make(lambda data: data)
    loop = Loop(FakeChannel(), worker, Forward(worker), 3.0)
    loop._forwarding = True
    with pytest.raises(MosecTimeoutError, match=r"^forward timeout after 3s$"):
        loop.on_alarm(signal.SIGALRM, None)


def test_an_alarm_before_the_limit_or_outside_of_forward_does_nothing() -> None:
    def ring(value: Any) -> Any:
        signal.raise_signal(signal.SIGALRM)
        return value

    assert one(make(ring), [1], timeout=60) == (0, b"[\n  1\n]")
    outside = make(lambda data: data, deserialize=lambda _self, data: ring(json.loads(data)))
    assert one(outside, 1, timeout=1e-9) == (0, b"1")


def test_a_worker_goes_on_after_an_overrun() -> None:
    worker = make(lambda data: overrun(data) if data == "slow" else data)
    answers = serve(worker, [(BOTH, b'"slow"')], [(BOTH, b"2")], timeout=0.01)
    assert [items[0][0] for items in answers] == [5, 0]
