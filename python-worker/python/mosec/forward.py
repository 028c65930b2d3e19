"""Hot path. A worker's `forward`, called in the way it is written: with contexts or without, async or not."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from mosec.context import Context
from mosec.worker import Worker

# How long a coroutine that was interrupted may take to clean up.
CLEAN_UP_SECONDS = 1.0


class Forward:
    """Calls the `forward` of one worker. What it needs to know of it is looked up once."""

    def __init__(self, worker: Worker) -> None:
        self._runner: asyncio.Runner | None = None
        # The coroutine that is waited for, and what has ended its time.
        self._task: asyncio.Task[Any] | None = None
        self._overrun: BaseException | None = None
        self._worker = worker
        self._is_async = inspect.iscoroutinefunction(worker.forward)
        self._batching = worker.max_batch_size > 1
        self.takes_context = _takes_context(worker.forward)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Called with the data, and `ctx=` where `takes_context` says so. User code may have swapped `forward`."""
        result = self._worker.forward(*args, **kwargs)
        return self.wait(result) if self._is_async else result

    def warm_up(self, example: Any) -> None:
        """Calls it with an example, and with contexts of nobody."""
        if not self.takes_context:
            self.call(example)
        elif self._batching:
            self.call(example, ctx=[Context() for _ in example])
        else:
            self.call(example, ctx=Context())

    def context(self, contexts: Sequence[Context]) -> Any:
        """What `ctx` is for a batch of these."""
        return contexts if self._batching else contexts[0]

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine of the worker's to its end, on the one event loop, in this thread."""
        loop = self._loop()
        task = None
        try:
            self._overrun = None
            task = self._task = loop.create_task(coroutine)
            return loop.run_until_complete(task)
        except BaseException:
            self._task = None  # first of all: the loop runs on for the clean-up, and is not to be stopped again
            # The alarm may have come between two steps: what is left of it must not go on beside the next batch.
            if task is not None and not task.done():
                task.cancel()
                loop.run_until_complete(asyncio.wait([task], timeout=CLEAN_UP_SECONDS))
                if self._overrun is not None:
                    raise self._overrun from None
            raise
        finally:
            self._task = None

    def interrupt(self, error: BaseException) -> None:
        """To be called by a signal handler that is about to raise `error`.

        In a callback or another task the event loop would swallow it, and the coroutine would go on.
        """
        task = self._task
        if task is None or asyncio.current_task(task.get_loop()) is task:
            return
        self._overrun = error
        task.get_loop().call_soon_threadsafe(self._stop, task)

    def close(self) -> None:
        """Ends the event loop, if there is one, and what still runs on it."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _stop(self, task: asyncio.Task[Any]) -> None:
        if self._task is task and not task.done():
            task.get_loop().stop()

    def _loop(self) -> asyncio.AbstractEventLoop:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.get_loop()


def _takes_context(method: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(method).parameters.get("ctx")
    except (TypeError, ValueError):  # a callable of another language, which does not say
        return False
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameter is not None and parameter.kind in by_name
