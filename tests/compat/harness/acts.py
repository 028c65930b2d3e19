"""Requests to `services/actor.py`."""

import json
from typing import Any


def act(**what: Any) -> bytes:
    """A request that says what the worker is to do; an underscore stands for a blank."""
    return json.dumps({key.replace("_", " "): value for key, value in what.items()}).encode()
