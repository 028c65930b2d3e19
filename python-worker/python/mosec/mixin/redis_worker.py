"""Large data between stages through a Redis server, by the package `redis`."""

import os
import uuid
from typing import Any

from mosec.errors import ServerError
from mosec.mixin.optional import require
from mosec.mixin.variables import REDIS_URL
from mosec.worker import Worker

_PREFIX = b"mosec:ipc:"
# Nobody comes for what a request left that failed on its way: no request is under way for this long. Seconds.
_EXPIRES = 60 * 60


class RedisShmIPCMixin(Worker):
    """Leaves data in Redis and passes its key on. Belongs on both stages: the writer's and the reader's."""

    _client: Any = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        require("redis", "RedisShmIPCMixin", "redis")

    @classmethod
    def set_redis_url(cls, url: str) -> None:
        """Names the server, as `redis://localhost:6379/0` or `unix:///tmp/redis.sock`, before `Server.run`.

        Worker processes find it in their environment.
        """
        os.environ[REDIS_URL] = url

    def serialize_ipc(self, data: Any) -> bytes:
        key = _PREFIX + uuid.uuid4().bytes
        self._redis().set(key, super().serialize_ipc(data), ex=_EXPIRES)
        return key

    def deserialize_ipc(self, data: bytes) -> Any:
        key = bytes(data)
        with self._redis().pipeline() as pipeline:
            payload, _ = pipeline.get(key).delete(key).execute()
        if payload is None:
            # Read once is gone: a worker that died had it.
            raise ServerError("the data of the stage before is no longer in Redis")
        return super().deserialize_ipc(payload)

    def _redis(self) -> Any:
        if self._client is None:
            import redis

            url = os.environ.get(REDIS_URL)
            if not url:
                raise RuntimeError("the Redis server is not known: call `RedisShmIPCMixin.set_redis_url` before `run`")
            self._client = redis.Redis.from_url(url)
        return self._client
