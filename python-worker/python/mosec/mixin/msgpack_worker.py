"""MessagePack requests and answers, by the package `msgpack`."""

from typing import Any

from mosec.errors import DecodingError, EncodingError

try:
    import msgpack
except ImportError as error:
    raise ImportError("MsgpackMixin needs the package msgpack: pip install msgpack") from error


class MsgpackMixin:
    """Reads and writes MessagePack. Arrays arrive as tuples."""

    resp_mime_type = "application/msgpack"
    req_mime_type = "application/msgpack"

    def deserialize(self, data: bytes) -> Any:
        try:
            return msgpack.unpackb(data, use_list=False)
        except Exception as error:
            raise DecodingError from error

    def serialize(self, data: Any) -> bytes:
        try:
            return msgpack.packb(data)
        except Exception as error:
            raise EncodingError from error
