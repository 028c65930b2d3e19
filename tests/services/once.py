"""A stage that must not run twice behind one that may: it writes down what it has begun."""

import time

from mosec import Worker


class First(Worker):
    def forward(self, data):
        return data


class Once(Worker):
    def forward(self, data):
        with open(data["log"], "a", encoding="utf-8") as log:
            log.write(f"{data['id']}\n")
        time.sleep(data["sleep"])
        return data
