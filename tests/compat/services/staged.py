"""Three stages, the second of which batches, and another route with one; for metrics and logs."""

import logging
from typing import Any

from acts import failure

from mosec import Runtime, Server, Worker, get_logger

logger = get_logger()


class First(Worker):
    def forward(self, data: Any) -> Any:
        if isinstance(data, dict) and "log" in data:
            logger.log(getattr(logging, data["log"]), "said %s", "by a user", extra={"ignored": 1})
        if isinstance(data, dict) and "trace" in data:
            try:
                raise ValueError("of the user's own")
            except ValueError:
                logger.exception("with a\ntrace")
        if isinstance(data, dict) and "stack" in data:
            logger.info("with a stack", stack_info=True)
        if isinstance(data, dict) and "print" in data:
            print(data["print"], flush=True)
        if isinstance(data, dict) and "forward" in data:
            raise failure(*data["forward"])
        return data


class Middle(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return data


class Last(Worker):
    example = "an example"

    def forward(self, data: Any) -> Any:
        return data


if __name__ == "__main__":
    logger.info("starting")
    first, middle, last = Runtime(First), Runtime(Middle, max_batch_size=4, max_wait_time=30), Runtime(Last)
    server = Server()
    server.register_runtime({"/inference": [first, middle, last], "/first": [first], "/batch": [middle]})
    server.run()
