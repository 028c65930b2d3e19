"""Names of MOSEC's module that tests of services use. What coordinates the workers here is `mosec.runner`."""

from enum import IntFlag


class State(IntFlag):
    """Which of the codecs apply to a request at a stage. Zero: neither, as between two stages."""

    #: The first stage of its route: `deserialize` reads it.
    INGRESS = 1
    #: The last one: `serialize` writes it.
    EGRESS = 2
