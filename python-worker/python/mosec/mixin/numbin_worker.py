"""NumPy arrays between stages as they are in memory, by the package `numbin`."""

from typing import Any

from mosec.errors import DecodingError, EncodingError
from mosec.mixin.optional import require


class NumBinIPCMixin:
    """Passes arrays on without pickle. Belongs on both stages, the one that sends them and the one that reads them.

    What arrives is read-only.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        require("numbin", "NumBinIPCMixin", "numbin")

    def serialize_ipc(self, data: Any) -> bytes:
        import numbin

        try:
            return numbin.dumps(data)
        except Exception as error:
            raise EncodingError from error

    def deserialize_ipc(self, data: bytes) -> Any:
        import numbin

        try:
            return numbin.loads(data)
        except Exception as error:
            raise DecodingError from error
