"""What `forward` may be besides a plain function of its data: contexts, coroutines, streams of events, and the end."""

import asyncio
import json
import logging
import math
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from fake_channel import BOTH, EGRESS, INGRESS, FakeChannel
from test_loop import INFERENCE, serve_on

from mosec import ClientError, Context, SSEWorker, Worker
from mosec.forward import Forward
from mosec.log import internal_logger
from mosec.runner import close, warm_up
from mosec.worker import header_names


def named(worker: Worker, max_batch_size: int = 1) -> Worker:
    worker.worker_id, worker.stage, worker.max_batch_size = 1, "Fake_1", max_batch_size
    return worker


def make(forward: Callable[..., Any], max_batch_size: int = 1, base: type[Worker] = Worker, **members: Any) -> Worker:
    return named(type("Fake", (base,), {"forward": forward, **members})(), max_batch_size)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[logging.LogRecord]:
    records: list[logging.LogRecord] = []
    monkeypatch.setattr(internal_logger(), "handle", records.append)
    return records


def items(*bodies: bytes) -> list[tuple[int, bytes]]:
    return [(BOTH, body) for body in bodies]


def test_a_context_is_given_to_who_asks_for_it() -> None:
    seen: list[Context] = []

    def forward(_self: Worker, data: Any, ctx: Context) -> Any:
        seen.append(ctx)
        return ctx.request_id

    channel = FakeChannel([items(b"1")])
    assert serve_on(channel, make(forward)) == [[(0, b'"0000000100000000"')]]
    assert seen[0].cancelled(), "it has been answered"


def test_contexts_are_in_the_order_of_the_data() -> None:
    channel = FakeChannel([items(b"0", b"{", b"2", b"3")])
    channel.cancelled = {3}

    def forward(_self: Worker, data: list[int], *, ctx: list[Context]) -> Any:
        assert [int(context.deadline) for context in ctx] == data, "the malformed item has none"
        return [[context.request_id[-1], context.cancelled()] for context in ctx]

    answers = serve_on(channel, make(forward, 4))[0]
    assert [body.split() for code, body in answers if code == 0] == [
        [b"[", b'"0",', b"false", b"]"],
        [b"[", b'"2",', b"false", b"]"],
        [b"[", b'"3",', b"true", b"]"],
    ]


def test_a_context_has_the_headers_that_its_worker_asks_for() -> None:
    seen: list[Context] = []

    def forward(_self: Worker, data: Any, ctx: Context) -> Any:
        seen.append(ctx)
        return dict(ctx.headers)

    channel = FakeChannel([items(b"1")])
    channel.headers = b"x-user:a: \xe9\naccept:a/b\nx-other:1\naccept:c\ncookie:a=1\ncookie:b=2\n"
    worker = make(forward, request_headers=["X-User", "accept", "cookie", "x-none"])
    ((code, body),) = serve_on(channel, worker)[0]
    assert code == 0
    assert json.loads(body) == {"x-user": "a: \xe9", "accept": "a/b, c", "cookie": "a=1; b=2"}
    assert seen[0].headers["x-user"] == "a: \xe9", "they stay when the request has been answered"
    with pytest.raises(TypeError):
        seen[0].headers["x-user"] = "another"  # type: ignore[index]


def test_a_context_has_no_headers_where_none_are_asked_for() -> None:
    channel = FakeChannel([items(b"1")])
    channel.headers = b"x-user:a\n"
    assert serve_on(channel, make(lambda _self, data, ctx: dict(ctx.headers))) == [[(0, b"{}")]]
    assert dict(Context().headers) == {}, "nor in a warm-up"


@pytest.mark.parametrize("names", ["x-user", [b"x-user"], [1]])
def test_what_is_no_list_of_names_is_refused(names: Any) -> None:
    worker = type("Fake", (Worker,), {"forward": lambda _self, data: data, "request_headers": names})
    with pytest.raises(TypeError, match=r"expected a list of names as Fake\.request_headers, found "):
        header_names(worker)


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_views_are_what_decoders_get_who_ask_for_them(max_batch_size: int) -> None:
    seen: list[Any] = []

    def decode(self: Worker, data: Any) -> Any:
        seen.append(data)
        return Worker.deserialize(self, data)

    channel = FakeChannel([items(b'{"a": [1]}', b"", b"{")])
    channel.give_views()
    worker = make(lambda _self, data: data, max_batch_size, deserialize=decode, serialize=lambda _self, data: data)
    worker.serialize = lambda data: json.dumps(data).encode()  # type: ignore[method-assign]
    answers = serve_on(channel, worker)[0]
    assert [code for code, _ in answers] == [0, 0, 1], "the default codec reads them"
    assert [body for code, body in answers if code == 0] == [b'{"a": [1]}', b"{}"]
    assert all(type(data) is memoryview for data in seen)


@pytest.mark.parametrize("max_batch_size", [1, 4])
@pytest.mark.parametrize("count", [1, 2])
def test_a_payload_is_let_go_before_its_answer_is_sent(max_batch_size: int, count: int) -> None:
    """What is seen in place goes back to the node agent with the answer, unless somebody uses it."""

    class Payload(bytearray):
        pass

    alive: list[weakref.ref[Payload]] = []

    class Channel(FakeChannel):
        def next(self) -> tuple[int, list[tuple[int, Any]]] | None:
            work = super().next()
            if work is None:
                return None
            batch, given = work
            given = [(flags, Payload(data)) for flags, data in given]
            alive.extend(weakref.ref(data) for _, data in given)
            return batch, given

        def answer(self, batch: int, codes: list[int], payloads: list[Any]) -> None:
            assert [payload() for payload in alive] == [None] * count
            super().answer(batch, codes, payloads)

    serve_on(Channel([items(*[b"1"] * count)]), make(lambda _self, data: data, max_batch_size))


def forward_of_keywords(_self: Worker, data: Any, **options: Any) -> Any:
    return sorted(options)


def forward_by_position(_self: Worker, data: Any, ctx: Any = "own", /) -> Any:
    return ctx


@pytest.mark.parametrize(("forward", "result"), [(forward_of_keywords, b"[]"), (forward_by_position, b'"own"')])
def test_who_does_not_ask_by_name_gets_none(forward: Callable[..., Any], result: bytes) -> None:
    worker = make(forward)
    assert not Forward(worker).takes_context
    assert serve_on(FakeChannel([items(b"1")]), worker) == [[(0, result)]]


def test_times_of_a_context() -> None:
    class At:
        def __init__(self, deadline: float) -> None:
            self.deadline = lambda: deadline

    assert Context(At(time.monotonic() - 1)).remaining() == 0
    assert 50 < Context(At(time.monotonic() + 60)).remaining() <= 60


@pytest.mark.parametrize(("size", "example"), [(1, 5), (3, [5, 6])])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_warm_up_has_contexts_of_nobody(size: int, example: Any, is_async: bool) -> None:
    seen: list[Any] = []

    def forward(_self: Worker, data: Any, ctx: Any) -> Any:
        seen.extend(ctx if size > 1 else [ctx])

    async def wait(_self: Worker, data: Any, ctx: Any) -> Any:
        forward(_self, data, ctx)

    worker = make(wait if is_async else forward, size, example=example)
    warm = Forward(worker)
    warm_up(worker, warm)
    warm.close()
    assert len(seen) == (len(example) if size > 1 else 1)
    for ctx in seen:
        assert (ctx.deadline, ctx.remaining(), ctx.cancelled()) == (math.inf, math.inf, False)
        assert ctx.request_id == "0" * 16


def test_a_coroutine_runs_on_one_loop_in_the_main_thread() -> None:
    seen: list[Any] = []

    async def forward(_self: Worker, data: list[int], ctx: list[Context]) -> list[int]:
        seen.append((asyncio.get_running_loop(), threading.current_thread()))
        await asyncio.sleep(0)
        return await asyncio.gather(*(asyncio.sleep(0, value * 10) for value in data))

    channel = FakeChannel([items(b"1", b"2"), items(b"3")])
    assert serve_on(channel, make(forward, 4), 2) == [[(0, b"10"), (0, b"20")], [(0, b"30")]]
    assert seen[0] == seen[1] and seen[0][1] is threading.main_thread()


def test_what_a_coroutine_raises_is_answered() -> None:
    async def forward(_self: Worker, data: Any) -> Any:
        if data == 1:
            raise ClientError("x")
        return data

    channel = FakeChannel([items(b"1"), items(b"2")])
    assert serve_on(channel, make(forward), 2) == [[(1, b"bad request: x")], [(0, b"2")]]


def test_a_coroutine_that_cancels_itself_fails_its_request_alone() -> None:
    async def forward(_self: Worker, data: Any) -> Any:
        if data == 1:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.sleep(60)
        return data

    channel = FakeChannel([items(b"1"), items(b"2")])
    assert serve_on(channel, make(forward), 2) == [[INFERENCE], [(0, b"2")]]


@pytest.mark.parametrize("where", ["in its own code", "asleep", "a callback is busy", "another task is busy"])
def test_a_coroutine_over_its_limit_is_ended_before_the_next_begins(where: str) -> None:
    events: list[str] = []

    def overrun() -> None:
        time.sleep(0.02)
        signal.raise_signal(signal.SIGALRM)

    async def overrun_beside() -> None:
        overrun()

    async def forward(_self: Worker, data: Any) -> Any:
        if data != "slow":
            events.append("next")
            return data
        try:
            if where == "asleep":
                threading.Timer(
                    0.05, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
                ).start()
                await asyncio.sleep(60)
            elif where == "a callback is busy":
                asyncio.get_running_loop().call_soon(overrun)
                await asyncio.sleep(60)
            elif where == "another task is busy":
                beside = asyncio.create_task(overrun_beside())
                beside.add_done_callback(asyncio.Task.exception)  # else asyncio reports it whenever it is collected
                await asyncio.sleep(60)
                await beside
            else:
                overrun()
        finally:
            events.append("cleaned up")

    channel = FakeChannel([items(b'"slow"'), items(b"2")])
    answers = serve_on(channel, make(forward), 2, timeout=0.01)
    assert answers == [[(5, b"mosec timeout error: forward timeout after 0.01s")], [(0, b"2")]]
    assert events == ["cleaned up", "next"]


def test_a_coroutine_that_will_not_end_is_left_behind() -> None:
    async def forward(_self: Worker, data: Any) -> Any:
        if data != "slow":
            return data
        threading.Timer(0.05, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)).start()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)  # as if it had not been told
        return None

    channel = FakeChannel([items(b'"slow"'), items(b"2")])
    assert [batch[0][0] for batch in serve_on(channel, make(forward), 2, timeout=0.01)] == [5, 0]


def streaming(forward: Callable[..., Any], size: int = 1) -> SSEWorker:
    worker = make(forward, size, SSEWorker)
    assert isinstance(worker, SSEWorker) and worker.resp_mime_type == "text/event-stream"
    return worker


def test_events_go_to_the_item_that_the_user_means() -> None:
    def forward(self: SSEWorker, data: list[int]) -> list[int]:
        for index, value in enumerate(data):
            self.send_stream_event(f"event {value}", index)
        return data

    channel = FakeChannel([items(b"{", b"1", b"2"), items(b"3")])
    answers = serve_on(channel, streaming(forward, 4), 2)
    assert channel.sent == [(1, 1, "event 1"), (1, 2, "event 2"), (2, 0, "event 3")]
    assert answers[0][1:] == [(0, b""), (0, b"")] and answers[1] == [(0, b"")], "results are not sent"


def test_events_of_another_thread() -> None:
    def forward(self: SSEWorker, data: Any) -> Any:
        thread = threading.Thread(target=self.send_stream_event, args=("from a thread",))
        thread.start()
        thread.join()

    channel = FakeChannel([items(b"1")])
    assert serve_on(channel, streaming(forward)) == [[(0, b"")]]
    assert channel.sent == [(1, 0, "from a thread")]


@pytest.mark.parametrize("index", [-1, 1, 99])
def test_an_index_out_of_range_is_the_users_mistake_alone(index: int) -> None:
    def forward(self: SSEWorker, data: Any) -> Any:
        with pytest.raises(IndexError, match=f"there is no item {index} in a batch of 1"):
            self.send_stream_event("lost", index)
        self.send_stream_event("found")

    channel = FakeChannel([items(b"1")])
    assert serve_on(channel, streaming(forward)) == [[(0, b"")]]
    assert channel.sent == [(1, 0, "found")]


def test_events_outside_of_a_forward() -> None:
    worker = streaming(lambda _self, data: None)
    with pytest.raises(RuntimeError, match="not initialised"):
        worker.send_stream_event("early")
    channel = FakeChannel([items(b"1")])
    serve_on(channel, worker)
    worker.send_stream_event("late")
    assert channel.sent == []


def test_a_result_that_cannot_be_written_ends_its_stream_with_an_error() -> None:
    channel = FakeChannel([items(b"1"), items(b"1", b"2")])
    answers = serve_on(channel, streaming(lambda _self, data: {1, 2}, 1), 2)
    assert answers == [[(3, b"encoding error: encoding error")], [(3, b"encoding error: encoding error")] * 2]
    channel = FakeChannel([items(b"1", b"2")])
    assert serve_on(channel, streaming(lambda _self, data: None, 4)) == [[INFERENCE, INFERENCE]], "it has no length"


def test_in_the_middle_of_a_route_the_result_goes_on() -> None:
    channel = FakeChannel([[(INGRESS, b"1")], [(EGRESS, b"\x80\x05K\x01.")]])
    answers = serve_on(channel, streaming(lambda _self, data: data), 2)
    assert answers[0][0][0] == 0 and answers[0][0][1] != b""
    assert answers[1] == [(0, b"")]


def test_close_is_called_and_may_fail(lines: list[logging.LogRecord]) -> None:
    calls: list[str] = []

    async def wait(_self: Worker) -> None:
        await asyncio.sleep(0)
        calls.append("async")

    def fail(_self: Worker) -> None:
        calls.append("fails")
        raise OSError("gone")

    for end in (lambda _self: calls.append("plain"), wait, fail):
        worker = make(lambda _self, data: data, close=end)
        close(worker, Forward(worker))
    assert calls == ["plain", "async", "fails"]
    (line,) = lines
    assert "<Fake_1|1> close failed" in line.getMessage() and "OSError: gone" in line.getMessage()
    for worker in (make(lambda _self, data: data), make(lambda _self, data: data, close=None)):
        close(worker, Forward(worker))
    assert len(lines) == 1
