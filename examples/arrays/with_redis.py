"""Sends arrays from stage to stage through a Redis server: the one that REDIS_URL names, or one of the service's own.

The service watches its own. When that ends, the service ends: no stage could read what the one before has written.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator

import redis
import stages

from mosec import Server
from mosec.mixin import RedisShmIPCMixin

PORT = int(os.environ.get("REDIS_PORT", "6379"))


class Read(RedisShmIPCMixin, stages.Read):
    pass


class Spectrum(RedisShmIPCMixin, stages.Spectrum):
    pass


class Peak(RedisShmIPCMixin, stages.Peak):
    pass


@contextlib.contextmanager
def own_redis() -> Iterator[tuple[str, subprocess.Popen]]:
    """A Redis server that answers: its URL and its process."""
    url = f"redis://127.0.0.1:{PORT}/0"
    command = ["redis-server", "--port", str(PORT), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"]
    with subprocess.Popen(command) as daemon:
        try:
            with redis.Redis.from_url(url) as connection:
                while not answers(connection):
                    if daemon.poll() is not None:
                        raise RuntimeError(f"redis-server ended with {daemon.returncode}")
                    time.sleep(0.01)
            yield url, daemon
        finally:
            daemon.terminate()


def answers(connection: redis.Redis) -> bool:
    try:
        return bool(connection.ping())
    except redis.ConnectionError:
        return False


if __name__ == "__main__":
    server = Server()
    server.append_worker(Read)
    server.append_worker(Spectrum, max_batch_size=16, max_wait_time=5)
    server.append_worker(Peak)
    if "REDIS_URL" in os.environ:
        RedisShmIPCMixin.set_redis_url(os.environ["REDIS_URL"])
        server.run()
    else:
        with own_redis() as (url, daemon):
            RedisShmIPCMixin.set_redis_url(url)
            server.register_daemon("redis-server", daemon)
            server.run()
