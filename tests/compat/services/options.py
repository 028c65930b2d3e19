"""Says which options the service has got, as far as MOSEC's users can see them, and what `Server()` warned of."""

import json
import os
import warnings
from typing import Any

from mosec import Server, Worker, get_logger


class Worker1(Worker):
    def forward(self, data: Any) -> Any:
        return data


if __name__ == "__main__":
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        server = Server()
    told = sorted({f"{one.category.__name__}" for one in caught})
    print(json.dumps({"warnings": told, "level": get_logger().getEffectiveLevel()}), flush=True)
    if "COMPAT_RUN" in os.environ:
        server.append_worker(Worker1)
        server.run()
