"""The whole content of Postgres and Redis as text, with packed values unpacked."""

import base64
import binascii
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import redis
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.schema.tables import metadata

_HEX = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{2}){8,}(?![0-9a-f])")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}")
_ESCAPE = re.compile(r"\\+u([0-9a-fA-F]{4})")
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32
_LAYERS = 4


def everything_stored(db: Database, client: redis.Redis) -> str:
    """Every row of every table, and every key and value in Redis."""
    with db.begin() as connection:
        rows = [
            str(row)
            for table in metadata.sorted_tables
            for (row,) in connection.execute(text(f"SELECT t::text FROM {table.name} AS t"))
        ]
    kept = [part for key in client.scan_iter("*") for part in (key, *_leaves(_value(client, key)))]
    return "\n".join(one for each in [*rows, *kept] for one in unpacked(each))


def unpacked(held: str | bytes, layers: int = _LAYERS) -> Iterator[str]:
    """Yield a text raw, without JSON escapes, and decoded from nested base64, hex, zlib and gzip."""
    if isinstance(held, bytes):
        with suppress(zlib.error):
            held = zlib.decompressobj(_ZLIB_OR_GZIP).decompress(held)
        held = held.decode(errors="replace")
    yield held
    if "\\u" in held:
        yield _ESCAPE.sub(lambda found: chr(int(found[1], 16)), held)
    if layers:
        for found in _HEX.findall(held):
            yield from unpacked(bytes.fromhex(found), layers - 1)
        for found in _BASE64.findall(held):
            yield from unpacked(_decoded(found), layers - 1)


def _decoded(found: str) -> bytes:
    whole = found.rstrip("=")
    whole = whole[: len(whole) - (len(whole) % 4 == 1)]
    try:
        return base64.b64decode(whole + "=" * (-len(whole) % 4), altchars=b"-_" if set(whole) & set("-_") else None)
    except binascii.Error:
        return b""


def _value(client: redis.Redis, key: bytes) -> Any:
    # Not DUMP, which compresses values.
    readers: dict[bytes, Callable[[], Any]] = {
        b"string": lambda: client.get(key),
        b"list": lambda: client.lrange(key, 0, -1),
        b"set": lambda: client.smembers(key),
        b"zset": lambda: client.zrange(key, 0, -1),
        b"hash": lambda: client.hgetall(key),
        b"stream": lambda: client.xrange(key),
    }
    kind: Any = client.type(key)
    return readers[kind]() if kind != b"none" else b""


def _leaves(value: Any) -> Iterator[str | bytes]:
    match value:
        case str() | bytes():
            yield value
        case dict():
            for pair in value.items():
                yield from _leaves(pair)
        case list() | tuple() | set():
            for one in value:
                yield from _leaves(one)
        case _:
            return
