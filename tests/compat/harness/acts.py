"""Requests to `services/actor.py`."""

import json
from typing import Any

from .service import Service


def act(**what: Any) -> bytes:
    """A request that says what the worker is to do; an underscore stands for a blank."""
    return json.dumps({key.replace("_", " "): value for key, value in what.items()}).encode()


def serving(service: Service, count: int = 2) -> list[int]:
    """Waits until so many workers have served, which says that they are ready; their ids."""
    ids: set[int] = set()

    def ask() -> bool:
        answers = service.together([act(about=1, sleep=0.2)] * count)
        ids.update(json.loads(answer.body)["worker_id"] for answer in answers if answer.status == 200)
        return len(ids) >= count

    service.until(ask)
    return sorted(ids)
