"""What the services share: ways to fail, and a place to leave notes."""

import os
from typing import Any

from mosec import ClientError, DecodingError, EncodingError, ServerError, ValidationError
from mosec.errors import MosecError, MosecTimeoutError
from mosec.protocol import HTTPStatusCode


class Quota(ClientError):
    """An error class of the user's own: another text."""

    msg = "quota exceeded"


class Teapot(MosecError):
    """An error class of the user's own: another status."""

    code = HTTPStatusCode.VALIDATION_ERROR
    msg = "teapot"


KINDS: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (
        ClientError,
        DecodingError,
        EncodingError,
        ServerError,
        ValidationError,
        MosecError,
        MosecTimeoutError,
        Quota,
        Teapot,
        KeyError,
        ValueError,
        ZeroDivisionError,
        SystemExit,
        KeyboardInterrupt,
    )
}


def failure(kind: str, *arguments: Any) -> BaseException:
    """The error that a request asks for; `[["KeyError", "x"]]` as argument is an error in an error."""
    given = [failure(*one) if isinstance(one, list) else one for one in arguments]
    return KINDS[kind](*given)


def note(name: str, line: str) -> None:
    """Adds a line to a file of the service's folder, where the test reads it."""
    file = os.open(os.path.join(os.environ["COMPAT_FOLDER"], name), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode() + b"\n")
    finally:
        os.close(file)
