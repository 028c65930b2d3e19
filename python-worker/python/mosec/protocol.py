"""The status words of MOSEC's API, which a user's error classes may set as their `code`."""

from enum import IntFlag


class HTTPStatusCode(IntFlag):
    """What an answer means. The numbers are MOSEC's."""

    OK = 1
    BAD_REQUEST = 2
    VALIDATION_ERROR = 4
    INTERNAL_ERROR = 8
    TIMEOUT_ERROR = 16
    STREAM_EVENT = 32768
