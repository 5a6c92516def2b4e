"""redis-py's clients that ask Redis Sentinel for the primary, whenever they open a connection.

After a failover the old connections break: the server is dead, or Sentinel cuts them when it makes it a replica, or it
refuses a write. The next connection goes to the new primary.
"""

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from headrace.store.redis_address import SentinelAddress, parse_sentinel

ASK_TIMEOUT_S = 1.0
"""Longest time for one Sentinel to accept a connection, and to answer; the next one is asked then."""


def connect_through_sentinel(url: str, **options: Any) -> redis.Redis:
    """Return a client of the primary; ``options`` are those of its connections."""
    address = parse_sentinel(url)
    asked: Any = _Sentinel(address.sentinels, sentinel_kwargs=sentinel_options(address))  # type: ignore[no-untyped-call]  # redis-py has no annotations here
    client: redis.Redis = asked.master_for(address.service, **_server_options(address), **options)
    return client


def connect_async_through_sentinel(
    url: str, *, max_connections: int | None = None, timeout: float | None = None, **options: Any
) -> redis.asyncio.Redis:
    """Return an asyncio client of the primary. With ``max_connections`` callers wait up to ``timeout`` seconds for a
    free connection of so many."""
    address = parse_sentinel(url)
    of_sentinels = {**sentinel_options(address), "retry": AsyncRetry(NoBackoff(), 0)}
    asked: Any = _AsyncSentinel(address.sentinels, sentinel_kwargs=of_sentinels)  # type: ignore[no-untyped-call]  # as above
    options |= _server_options(address)
    if max_connections is not None:
        options |= {"max_connections": max_connections, "timeout": timeout, "connection_pool_class": _BlockingPool}
    client: redis.asyncio.Redis = asked.master_for(address.service, **options)
    return client


def sentinel_options(address: SentinelAddress) -> dict[str, Any]:
    """Return the options for connections to the Sentinels, for kombu as well.

    Without another try, because the next Sentinel knows the same.
    """
    options: dict[str, Any] = {"socket_timeout": ASK_TIMEOUT_S, "socket_connect_timeout": ASK_TIMEOUT_S}
    options["retry"] = Retry(NoBackoff(), 0)
    if address.sentinel_password is not None:
        options |= {"username": address.sentinel_username, "password": address.sentinel_password}
    return options | ({"ssl": True, **tls_options(address)} if address.is_encrypted else {})


def tls_options(address: SentinelAddress) -> dict[str, Any]:
    """Return redis-py's TLS options: the certificate and its host name are verified unless the address says no."""
    options: dict[str, Any] = {"ssl_cert_reqs": "required", **address.tls}
    options["ssl_check_hostname"] = options.get("ssl_check_hostname", "true").lower() == "true"
    return options


def _server_options(address: SentinelAddress) -> dict[str, Any]:
    options: dict[str, Any] = {"db": address.db, "username": address.username, "password": address.password}
    return options | ({"ssl": True, **tls_options(address)} if address.is_encrypted else {})


class _Sentinel(redis.sentinel.Sentinel):
    """Closes its connections after each question, because a client's ``close`` does not."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            found: tuple[str, int] = super().discover_master(service_name)  # type: ignore[no-untyped-call]  # as above
            return found
        finally:
            for one in self.sentinels:
                # Those in use are another thread's, which is asking too.
                one.connection_pool.disconnect(inuse_connections=False)


class _AsyncSentinel(redis.asyncio.sentinel.Sentinel):
    """Closes its connections after each question, because a client's ``aclose`` does not."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            found: tuple[str, int] = await super().discover_master(service_name)
            return found
        finally:
            for one in self.sentinels:
                await one.connection_pool.disconnect(inuse_connections=False)


class _BlockingPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """A pool of few connections, for which callers wait, of the primary that Sentinel names."""
