"""Workers that never come up, each in its own way."""

import os
import signal
import time

from mosec import Worker


class Works(Worker):
    def forward(self, data):
        return data


class Killed(Worker):
    """Ends as a process for which there is no memory left, or that somebody has killed."""

    def __init__(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def forward(self, data):
        return data


class TakesAllMemory(Worker):
    """Takes memory until the kernel ends it; where nothing limits it, until it has two GiB."""

    def __init__(self):
        self.weights = []
        while len(self.weights) < 128:
            self.weights.append(b"\x01" * (16 << 20))
        raise RuntimeError("the limit does not hold")

    def forward(self, data):
        return data


class OutOfMemory(Worker):
    def __init__(self):
        self.weights = bytearray(1 << 60)

    def forward(self, data):
        return data


class NeverWarm(Worker):
    """Is told to warm up by an example, and does not come back."""

    example = {"id": 0}

    def forward(self, data):
        time.sleep(3600)
        return data
