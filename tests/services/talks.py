"""A stage that says what it sees, and dies when it is told to."""

import os
import signal
import sys

from mosec import Worker


class Talks(Worker):
    def __init__(self):
        print("loading a model")

    def forward(self, data):
        print(f"saw {data['say']}")
        if data.get("die"):
            print("cannot go on", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGKILL)
        return data
