"""MessagePack requests checked against the annotation of `forward`, by the package `msgspec`."""

import inspect
from typing import Any, get_args, get_origin, get_type_hints

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

    def deserialize(self, data: bytes) -> Any:
        if self._decoder is None:
            self._decoder = msgspec.msgpack.Decoder(self._request_type())
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:  # a DecodeError too, so it comes first
            raise ValidationError(error) from error
        except msgspec.DecodeError as error:
            raise DecodingError(error) from error

    def serialize(self, data: Any) -> bytes:
        return msgspec.msgpack.encode(data)

    def _request_type(self) -> Any:
        parameters = list(inspect.signature(self.forward).parameters)
        hints = get_type_hints(type(self).forward)
        annotation = hints.get(parameters[0], Any) if parameters else Any
        if self.max_batch_size > 1 and get_origin(annotation) is list:
            return get_args(annotation)[0]
        return annotation
