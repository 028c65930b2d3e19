"""Hot path. The main function of a worker process: loads the user's class and runs batches until told to stop.

Started by the node agent as `python -m mosec.runner`, with its end of the channel as standard input. `forward` runs in
the main thread, one batch at a time. A native thread watches the time limit and sends SIGALRM to one that overruns.
Requests that nobody waits for any more are answered by the channel and never seen here.
"""

import asyncio
import faulthandler
import inspect
import io
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from typing import Any

from mosec import dry_run, errors, server, source
from mosec.context import Context
from mosec.errors import EncodingError, MosecError, MosecTimeoutError
from mosec.forward import Forward
from mosec.log import internal_logger, one_line
from mosec.worker import SSEWorker, Worker, header_names

# What a request can fail by. Anything else (SystemExit, KeyboardInterrupt) ends the process.
FAILURES = (Exception, MosecTimeoutError, asyncio.CancelledError)
# What a worker does not heed: see `_take_signals`.
_IGNORED = (signal.SIGTERM, signal.SIGINT)
# Flags of an item: which of the codecs apply is a matter of its route, so it may differ within a batch.
INGRESS = 1
EGRESS = 2


def main() -> int:
    """Loads, warms up, says that it is ready, and serves. The exit status of the process."""
    from mosec import _native

    _speak_at_once()
    channel, spec_text = _native.Channel.attach()
    try:
        worker, forward, timeout = start(json.loads(spec_text))
        if worker.zero_copy:
            channel.give_views()
        loop = Loop(channel, worker, forward, timeout)
        _take_signals(loop)
    except BaseException:  # whatever ends the start, the node agent is told why
        channel.failed(traceback.format_exc())
        return 1
    internal_logger().info("%s socket connected to the node agent", label(worker))
    channel.ready()
    loop.run()
    close(worker, forward)
    return 0


def _speak_at_once() -> None:
    """Sends each line on as it is written, and has a crash in native code say where it was.

    Into a pipe Python writes some thousand bytes at a time, and a process that is killed takes along what it has not
    written.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    if sys.stderr is not None:
        faulthandler.enable()


def start(spec: dict[str, Any]) -> tuple[Worker, Forward, float]:
    """Makes the worker of one replica and runs its examples. Gives back the time limit of `forward` in seconds too."""
    stage, code = spec["stage"], spec["source"]
    server.in_worker = True
    # As `multiprocessing` names a child: what asks for the name to do a thing once, in the main process, does it there.
    multiprocessing.current_process().name = f"SpawnProcess-{spec['replica']}"
    source.enter(code["dir"], code.get("main"), code.get("argv", []))
    if code.get("main") is not None:
        source.run_script(code["main"], "__mp_main__")
    worker = source.resolve(stage["module"], stage["class"])()
    worker.worker_id = spec["replica"]
    worker.stage = stage["name"]
    worker.max_batch_size = stage["max_batch_size"]
    forward = Forward(worker)
    if dry_run.is_on():
        dry_run.prepare(worker)
    else:
        warm_up(worker, forward)
    return worker, forward, stage["timeout"] / 1000


def warm_up(worker: Worker, forward: Forward) -> None:
    """Calls `forward` on the examples. One that fails is reported and nothing more."""
    logger = internal_logger()
    try:
        if _is_given(worker.multi_examples):
            for example in worker.multi_examples:
                forward.warm_up(example)
        elif _is_given(worker.example):
            forward.warm_up(worker.example)
        else:
            return
        logger.info("%s warmup successfully", label(worker))
    except FAILURES:
        logger.error("%s warmup failed: %s", label(worker), one_line(traceback.format_exc()))


def close(worker: Worker, forward: Forward) -> None:
    """Calls the worker's `close`, if it has one. What it raises is reported and nothing more."""
    try:
        method = getattr(worker, "close", None)
        if callable(method):
            left = method()
            if inspect.iscoroutine(left):
                forward.wait(left)
        forward.close()
    except FAILURES:
        internal_logger().error("%s close failed: %s", label(worker), one_line(traceback.format_exc()))


def label(worker: Worker) -> str:
    return f"<{worker.stage}|{worker.worker_id}>"


def _is_given(example: Any) -> bool:
    try:
        return bool(example)
    except ValueError:  # an array has no truth value, and is an example
        return True


def _take_signals(loop: "Loop") -> None:
    # A ^C of the terminal reaches the workers too: they leave when the node agent tells them, after their last answer.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, loop.on_alarm)
    # A child that user code forks is nobody's worker: whoever has started it may end it, at once. A signal that comes
    # before the child has stopped to ignore it waits meanwhile.
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals, after_in_child=_give_signals_back)


def _hold_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)


def _let_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)


def _give_signals_back() -> None:
    for number in (*_IGNORED, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    _let_signals()


class Stream:
    """Where an `SSEWorker` puts its events, from whichever thread."""

    def __init__(self, channel: Any) -> None:
        self._send = channel.send_event
        #: The batch in `forward`, and the place in it of each item that `forward` has; none in between.
        self.batch: tuple[int, list[int]] | None = None

    def send(self, text: str, index: int) -> None:
        """Sends an event. Between batches there is nobody to have it."""
        if self.batch is None:
            return
        batch, places = self.batch
        if not 0 <= index < len(places):
            raise IndexError(f"there is no item {index} in a batch of {len(places)}")
        self._send(batch, places[index], text)


class Loop:
    """Takes batches from the channel, runs them, and answers each of their items."""

    def __init__(self, channel: Any, worker: Worker, forward: Forward, timeout: float) -> None:
        self._channel = channel
        self._label = label(worker)
        self._batching = worker.max_batch_size > 1
        self._forward = forward
        self._call = forward.call
        # Its codecs are looked up for each item, as MOSEC does: user code may put others in their place.
        self._worker = worker
        self._forward_started = channel.forward_started
        self._forward_ended = channel.forward_ended
        self._headers = frozenset(header_names(type(worker)))
        self._timeout = timeout
        self._started_at = 0.0
        self._forwarding = False
        self._stream: Stream | None = None
        if isinstance(worker, SSEWorker):
            self._stream = Stream(channel)
            worker._send_event = self._stream.send

    def run(self) -> None:
        """Serves until the channel says stop."""
        next_batch, answer, batching = self._channel.next, self._channel.answer, self._batching
        while (work := next_batch()) is not None:
            batch, items = work
            # What is seen in place goes back with the answer, if nobody uses it any more: nothing here may.
            del work
            if batching:
                codes, payloads = self._run_list(batch, items)
                del items
                answer(batch, codes, payloads)
            elif len(items) == 1:
                code, payload = self._run_one(batch, 0, *items.pop())
                answer(batch, [code], [payload])
            else:
                answers = [self._run_one(batch, place, flags, data) for place, (flags, data) in enumerate(items)]
                del items
                answer(batch, [code for code, _ in answers], [payload for _, payload in answers])

    def on_alarm(self, _signum: int, _frame: Any) -> None:
        """Raises in a `forward` that is over its limit; an alarm that comes late, or of someone else, does nothing."""
        if self._forwarding and time.monotonic() - self._started_at >= self._timeout:
            self._forwarding = False
            error = MosecTimeoutError(f"forward timeout after {self._timeout:g}s")
            self._forward.interrupt(error)
            raise error

    def _run_one(self, batch: int, place: int, flags: int, data: Any) -> tuple[int, Any]:
        try:
            result = self._timed_forward(self._decode(flags, data), batch, [place])
            return self._encode(flags, result)
        except FAILURES as error:
            return self._failure(error)

    def _run_list(self, batch: int, items: list[tuple[int, Any]]) -> tuple[list[int], list[Any]]:
        """One `forward` for all items that can be decoded. What fails of one item alone, fails it alone."""
        codes: list[int] = [errors.OK] * len(items)
        payloads: list[Any] = [b""] * len(items)
        places, inputs = [], []
        for place, (flags, data) in enumerate(items):
            try:
                inputs.append(self._decode(flags, data))
                places.append(place)
            except FAILURES as error:
                codes[place], payloads[place] = self._failure(error)
        if not places:
            return codes, payloads
        try:
            results = self._timed_forward(inputs, batch, places)
            if len(results) != len(places):
                raise ValueError(f"forward returned {len(results)} results for a batch of {len(places)}")
            results = list(results)
        except FAILURES as error:
            failure = self._failure(error)
            for place in places:
                codes[place], payloads[place] = failure
            return codes, payloads
        for place, result in zip(places, results, strict=True):
            try:
                codes[place], payloads[place] = self._encode(items[place][0], result)
            except FAILURES as error:
                codes[place], payloads[place] = self._failure(error)
        return codes, payloads

    def _timed_forward(self, data: Any, batch: int, places: list[int]) -> Any:
        """`places`: of each item of the data, where it is in the batch."""
        options = self._options(batch, places) if self._forward.takes_context else {}
        stream = self._stream
        if stream is not None:
            stream.batch = batch, places
        self._started_at = time.monotonic()
        self._forward_started()
        try:
            self._forwarding = True
            return self._call(data, **options)
        finally:
            self._forwarding = False  # first of all: from here on, a late alarm does nothing
            self._forward_ended()
            if stream is not None:
                stream.batch = None

    def _options(self, batch: int, places: list[int]) -> dict[str, Any]:
        watch = self._channel.watch
        return {"ctx": self._forward.context([Context(watch(batch, place), self._headers) for place in places])}

    def _decode(self, flags: int, data: Any) -> Any:
        return self._worker.deserialize(data) if flags & INGRESS else self._worker.deserialize_ipc(data)

    def _encode(self, flags: int, result: Any) -> tuple[int, Any]:
        if isinstance(result, FAILURES):
            raise result
        payload = self._worker.serialize(result) if flags & EGRESS else self._worker.serialize_ipc(result)
        if self._stream is not None and flags & EGRESS:
            payload = b""  # its client has had the events; the result was of use as a check alone
        return errors.OK, payload if type(payload) is bytes else _as_buffer(payload)

    def _failure(self, error: BaseException) -> tuple[int, bytes]:
        """The error as an answer. Logs it: in short what the worker's author meant to say, anything else in full."""
        if isinstance(error, (MosecError, MosecTimeoutError)):
            try:
                code, text = errors.describe(error)
                internal_logger().info("%s %s", self._label, text)
                return code, text.encode("utf-8", "replace")
            except Exception as broken:  # an error class of the user's with a bad `code`, `msg` or `__str__`
                error = broken
        trace = "".join(traceback.format_exception(error))
        internal_logger().warning("%s %s", self._label, one_line(trace))
        return errors.INFERENCE, errors.INFERENCE_TEXT


def _as_buffer(payload: Any) -> Any:
    """What the channel can send: flat bytes."""
    if isinstance(payload, (bytes, bytearray)):
        return payload
    try:
        view = memoryview(payload)
    except TypeError:
        raise EncodingError(f"serialize returned {type(payload).__name__}, expected bytes") from None
    return view if view.ndim == 1 and view.format == "B" and view.c_contiguous else view.tobytes()


if __name__ == "__main__":
    # The user's script takes the place of `__main__`, so this module must be found under its own name.
    from mosec import runner

    source.forget_launch_folder()
    sys.exit(runner.main())
