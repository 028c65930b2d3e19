"""MessagePack requests checked against the annotation of `forward`, by the package `msgspec`."""

from typing import Any

from mosec import annotations
from mosec.errors import DecodingError, ValidationError
from mosec.worker import Worker

try:
    import msgspec
except ImportError as error:
    raise ImportError("TypedMsgPackMixin needs the package msgspec: pip install msgspec") from error


class TypedMsgPackMixin(Worker):
    """Decodes each request to the type of `forward`'s first parameter; of `list[T]`, where the stage batches, to T."""

    resp_mime_type = "application/msgpack"
    req_mime_type = "application/msgpack"

    _decoder: Any = None

    @classmethod
    def _make_decoder(cls, batching: bool) -> Any:
        return msgspec.msgpack.Decoder(annotations.of_request(cls, batching))

    @classmethod
    def _check(cls, batching: bool) -> None:
        cls._make_decoder(batching)

    def deserialize(self, data: bytes) -> Any:
        if self._decoder is None:
            self._decoder = self._make_decoder(self.max_batch_size > 1)
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:  # a DecodeError too, so it comes first
            raise ValidationError(error) from error
        except msgspec.DecodeError as error:
            raise DecodingError(error) from error

    def serialize(self, data: Any) -> bytes:
        return msgspec.msgpack.encode(data)
