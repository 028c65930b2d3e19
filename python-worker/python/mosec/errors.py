"""Errors that a worker raises to answer a request with a status and text of its choice.

A subclass may set `code` and `msg`. The answer's text is `"{msg}: {str(error)}"`. Any other exception answers 500
without details, which are then in the worker's log only.
"""

from mosec.protocol import HTTPStatusCode


class MosecError(Exception):
    """Base of the errors whose text the client sees. Answers 500."""

    code: HTTPStatusCode = HTTPStatusCode.INTERNAL_ERROR
    msg: str = "mosec error"


class ClientError(MosecError):
    """The request is at fault. Answers 400."""

    code = HTTPStatusCode.BAD_REQUEST
    msg = "bad request"


class DecodingError(ClientError):
    """The request's body could not be decoded. Answers 400."""

    msg = "decoding error"


class ValidationError(MosecError):
    """The request was decoded and is not valid. Answers 422."""

    code = HTTPStatusCode.VALIDATION_ERROR
    msg = "request validation error"


class ServerError(MosecError):
    """The worker is at fault and says how. Answers 500."""

    msg = "internal error"


class EncodingError(ServerError):
    """The result could not be encoded. Answers 500."""

    msg = "encoding error"


class MosecTimeoutError(BaseException):
    """`forward` overran the stage's time limit. Answers 408.

    Not an `Exception`, so that a worker's own `except Exception` does not swallow it.
    """

    code = HTTPStatusCode.TIMEOUT_ERROR
    msg = "mosec timeout error"


# Numbers of `ErrorCode` in `crates/types/src/error.rs`.
OK = 0
BAD_REQUEST = 1
VALIDATION = 2
WORKER = 3
INFERENCE = 4
FORWARD_TIMEOUT = 5

# Text of an answer whose details stay in the log.
INFERENCE_TEXT = b"inference internal error"

_CODES = {
    HTTPStatusCode.OK: OK,
    HTTPStatusCode.BAD_REQUEST: BAD_REQUEST,
    HTTPStatusCode.VALIDATION_ERROR: VALIDATION,
    HTTPStatusCode.INTERNAL_ERROR: WORKER,
    HTTPStatusCode.TIMEOUT_ERROR: FORWARD_TIMEOUT,
}


def describe(error: MosecError | MosecTimeoutError) -> tuple[int, str]:
    """The error's number on the wire and its text for the client."""
    detail = str(error).replace("\n", " - ") or error.msg
    return _CODES.get(error.code, WORKER), f"{error.msg}: {detail}"
