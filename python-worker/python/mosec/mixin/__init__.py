"""Codecs other than JSON: put a mixin before `Worker` in the bases.

Each needs a package of its own, which is imported when the mixin is.
"""

import importlib
from typing import Any

_MODULES = {"MsgpackMixin": "msgpack_worker", "TypedMsgPackMixin": "typed_worker"}

__all__ = ["MsgpackMixin", "TypedMsgPackMixin"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
