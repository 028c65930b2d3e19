"""Two stages that say which revision of the pipeline answered."""

import os
import time

from mosec import Worker

REVISION = os.environ.get("REVISION", "")
# Long enough for an update always to find batches under way.
SECONDS = float(os.environ.get("SECONDS", "0.25"))


class Slow(Worker):
    def forward(self, data):
        time.sleep(SECONDS)
        return [{**item, "first": REVISION} for item in data]


class Last(Worker):
    def forward(self, data):
        return [{**item, "last": REVISION} for item in data]
