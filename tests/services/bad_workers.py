"""Classes that cannot be deployed."""

from mosec import Worker


class NoWorker:
    pass


class FailsToStart(Worker):
    def __init__(self):
        raise RuntimeError("no model here")

    def forward(self, data):
        return data
