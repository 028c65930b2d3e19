"""Workers that never come up, each in its own way."""

import os
import signal
import time

from mosec import Worker


class Works(Worker):
    def forward(self, data):
        return data


class KilledForItsMemory(Worker):
    """Ends as the kernel ends a process for which there is no memory left."""

    def __init__(self):
        os.kill(os.getpid(), signal.SIGKILL)

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
