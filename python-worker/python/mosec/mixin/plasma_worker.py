"""Large data between stages through a Plasma store, by the package `pyarrow` below 12, the last one to have it."""

import os
from typing import Any

from mosec.errors import ServerError
from mosec.mixin.optional import require
from mosec.mixin.variables import PLASMA_PATH
from mosec.worker import Worker


class PlasmaShmIPCMixin(Worker):
    """Leaves data in a Plasma store and passes its id on. Belongs on both stages.

    Deprecated, as Plasma is: stages on one node share memory without it.
    """

    _client: Any = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        require("pyarrow.plasma", "PlasmaShmIPCMixin", "pyarrow<12")

    @classmethod
    def set_plasma_path(cls, path: str) -> None:
        """Names the store's socket, before `Server.run`. Worker processes find it in their environment."""
        os.environ[PLASMA_PATH] = path

    def serialize_ipc(self, data: Any) -> bytes:
        return self._plasma().put(super().serialize_ipc(data)).binary()

    def deserialize_ipc(self, data: bytes) -> Any:
        from pyarrow import plasma

        client, place = self._plasma(), plasma.ObjectID(bytes(data))
        # Without waiting: what the stage before wrote is there, or gone for good.
        payload = client.get(place, timeout_ms=0)
        if payload is plasma.ObjectNotAvailable:
            raise ServerError("the data of the stage before is no longer in the Plasma store")
        client.delete([place])
        return super().deserialize_ipc(payload)

    def _plasma(self) -> Any:
        if self._client is None:
            from pyarrow import plasma

            path = os.environ.get(PLASMA_PATH)
            if not path:
                raise RuntimeError("the store is not known: call `PlasmaShmIPCMixin.set_plasma_path` before `run`")
            self._client = plasma.connect(path)
        return self._client
