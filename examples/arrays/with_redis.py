"""Sends arrays from stage to stage through a Redis server, which the service starts and watches.

When Redis ends, the service ends: a later stage could not read what an earlier one has written.
"""

import os
import subprocess
import time

import redis
import stages

from mosec import Server
from mosec.mixin import RedisShmIPCMixin

PORT = int(os.environ.get("REDIS_PORT", "6379"))
URL = f"redis://127.0.0.1:{PORT}/0"


class Read(RedisShmIPCMixin, stages.Read):
    pass


class Spectrum(RedisShmIPCMixin, stages.Spectrum):
    pass


class Peak(RedisShmIPCMixin, stages.Peak):
    pass


def wait_until_it_answers(daemon: subprocess.Popen) -> None:
    with redis.Redis.from_url(URL) as connection:
        while daemon.poll() is None:
            try:
                connection.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.01)
    raise RuntimeError(f"redis-server ended with {daemon.returncode}")


if __name__ == "__main__":
    server = Server()
    command = ["redis-server", "--port", str(PORT), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"]
    with subprocess.Popen(command) as daemon:
        try:
            wait_until_it_answers(daemon)
            RedisShmIPCMixin.set_redis_url(URL)
            server.register_daemon("redis-server", daemon)
            server.append_worker(Read)
            server.append_worker(Spectrum, max_batch_size=16, max_wait_time=5)
            server.append_worker(Peak)
            server.run()
        finally:
            daemon.terminate()
