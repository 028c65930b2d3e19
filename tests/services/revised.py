"""Two stages that say which revision of the pipeline answered."""

import os
import time

from mosec import Worker

REVISION = os.environ.get("REVISION", "")


class Slow(Worker):
    """Takes its time, so that an update always finds batches under way."""

    def forward(self, data):
        time.sleep(0.25)
        return [{**item, "first": REVISION} for item in data]


class Last(Worker):
    def forward(self, data):
        return [{**item, "last": REVISION} for item in data]
