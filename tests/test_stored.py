"""What looks for a text in everything that is stored finds it, however it is packed."""

import base64
import gzip
import json
import zlib
from collections.abc import Callable

import pytest
import redis

from headrace.store.db.database import Database
from tests.stored import everything_stored

NEEDLE = "ann.unique@example.com"
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "base64": base64.b64encode,
    "for URLs": lambda data: base64.urlsafe_b64encode(b"\xfb\xef" + data).rstrip(b"="),
    "hex": lambda data: data.hex().encode(),
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "one in another": lambda data: base64.b64encode(
        json.dumps({"p": base64.b64encode(zlib.compress(data)).decode()}).encode()
    ),
    "escaped": lambda data: b'"' + b"".join(b"\\u%04x" % code for code in data) + b'"',
    # Redis itself packs what repeats.
    "long": lambda data: b"x" * 20_000 + (b"ann." * 1000) + data + b"example.com" * 1000,
}


@pytest.mark.parametrize("packing", PACKED)
def test_redis(db: Database, redis_client: redis.Redis, packing: str) -> None:
    value = PACKED[packing](NEEDLE.encode())
    puts: list[Callable[[], object]] = [
        lambda: redis_client.set("k", value),
        lambda: redis_client.rpush("k", value),
        lambda: redis_client.sadd("k", value),
        lambda: redis_client.zadd("k", {value: 1}),
        lambda: redis_client.hset("k", mapping={"f": value}),
        lambda: redis_client.xadd("k", {"f": value}),
        lambda: redis_client.set(value, 1),
    ]
    for put in puts:
        put()
        assert NEEDLE in everything_stored(db, redis_client)
        redis_client.flushdb()
        assert NEEDLE not in everything_stored(db, redis_client)
