"""What a machine lacks that a test needs."""

import os
from typing import NoReturn

import pytest

MUST = "MOSEC_TEST_MUST_OBSERVE"


def lacks(what: str) -> NoReturn:
    """Skips the test, or fails it where everything has to be checked."""
    if os.environ.get(MUST) == "1":
        pytest.fail(f"{what}, and {MUST} is set", pytrace=False)
    pytest.skip(what)
