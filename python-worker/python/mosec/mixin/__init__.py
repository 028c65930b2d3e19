"""Codecs other than JSON and pickle: put a mixin before `Worker` in the bases.

Each needs a package of its own, and says so where it is missing: `pip install mosec-cluster[msgpack]` brings it.
"""

import importlib
from typing import Any

_MODULES = {
    "MsgpackMixin": "msgpack_worker",
    "NumBinIPCMixin": "numbin_worker",
    "PlasmaShmIPCMixin": "plasma_worker",
    "RedisShmIPCMixin": "redis_worker",
    "TypedMsgPackMixin": "typed_worker",
}

__all__ = ["MsgpackMixin", "NumBinIPCMixin", "PlasmaShmIPCMixin", "RedisShmIPCMixin", "TypedMsgPackMixin"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
