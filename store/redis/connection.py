"""Redis clients with their time-outs, the circuit breaker, and the broker's options for Celery.

With an address of Sentinel each new connection goes to the primary that Sentinel names (``store.redis.sentinel``). The
data in Redis is described in ``store.redis.celery_queue``, ``store.redis.rate_limiter`` and ``store.streams``.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from headrace.store.errors import Unavailable
from headrace.store.periodic import UNTIL_WOKEN, Periodic
from headrace.store.redis.sentinel import (
    connect_async_through_sentinel,
    connect_through_sentinel,
    sentinel_options,
    tls_options,
)
from headrace.store.redis_address import SentinelAddress, is_sentinel, parse_sentinel

CONNECT_TIMEOUT_S = 5.0
SOCKET_TIMEOUT_S = 30.0
HEALTH_CHECK_S = 10
ASYNC_CONNECTIONS = 16
ASYNC_TIMEOUT_S = 5.0
_PING_TIMEOUT_S = 1.0
_PING_AGAIN_S = 0.25
# Otherwise redis-py parses the metadata of its package for each connection: 1.5 ms.
_DRIVER = DriverInfo()

Result = TypeVar("Result")

AWAY = (redis.RedisError, OSError)
"""The exceptions of a call while Redis is away, full, read-only or still loading."""


def connect(url: str, *, timeout_s: float | None = SOCKET_TIMEOUT_S, retries: int = 1) -> redis.Redis:
    """Return a client that connects when first used; a dropped connection is replaced once, then the error is raised.

    ``timeout_s`` bounds connecting and each reply; None waits for ever, as a subscription must. A silent server costs a
    multiple of it, unless ``retries`` is 0.
    """
    options: dict[str, Any] = {"socket_timeout": timeout_s, "retry": Retry(NoBackoff(), retries)}
    options |= _connection_options(url, timeout_s)
    return connect_through_sentinel(url, **options) if is_sentinel(url) else redis.Redis.from_url(url, **options)


def connect_async(url: str, *, blocking: bool) -> redis.asyncio.Redis:
    """Return an asyncio client.

    With ``blocking`` it is for a subscription: no reply time-out (redis-py's default is 5 s), no reconnecting, and no
    health checks, because redis-py hides their answers from the reader. Otherwise it is for short commands over a small
    pool, in which callers wait for a free connection.
    """
    timeout_s = None if blocking else ASYNC_TIMEOUT_S
    options: dict[str, Any] = {"socket_timeout": timeout_s, **_connection_options(url, timeout_s)}
    if blocking:
        options |= {"retry": _NeverReconnect(NoBackoff(), 0), "health_check_interval": 0}
        through_sentinel, direct = connect_async_through_sentinel, redis.asyncio.Redis.from_url
        return _with_own_errors(through_sentinel(url, **options) if is_sentinel(url) else direct(url, **options))
    options |= {"max_connections": ASYNC_CONNECTIONS, "timeout": ASYNC_TIMEOUT_S, "retry": AsyncRetry(NoBackoff(), 1)}
    if is_sentinel(url):
        return _with_own_errors(connect_async_through_sentinel(url, **options))
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, **options)
    return _with_own_errors(redis.asyncio.Redis.from_pool(pool))


class _ClosedIsAway:
    """Part of a connection: says that Redis is away when uvloop has closed the transport before a command is written.

    uvloop raises RuntimeError there, which redis-py passes on, so a request that met it was answered with 500.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        parent: Any = super()
        try:
            await parent.send_packed_command(command, check_health)
        except RuntimeError as error:
            if "closed" not in str(error):
                raise
            raise redis.ConnectionError("the connection to Redis is closed") from error


def _with_own_errors(client: redis.asyncio.Redis) -> redis.asyncio.Redis:
    """Let the client's connections, TCP, TLS, sockets or of Sentinel, be of a class with ``_ClosedIsAway``."""
    pool: Any = client.connection_pool
    pool.connection_class = type(pool.connection_class.__name__, (_ClosedIsAway, pool.connection_class), {})
    return client


class _NeverReconnect(AsyncRetry):
    """Raises at the first failure. redis-py's own reconnects first even with no retries.

    Several tasks use a subscription's one connection; when it is cut, each of them would open a new socket, of which
    all but the last leak.
    """

    async def call_with_retry(
        self, do: Callable[[], Awaitable[Result]], fail: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Result:
        """Run ``do`` once."""
        return await do()


def _connection_options(url: str, timeout_s: float | None) -> dict[str, Any]:
    options: dict[str, Any] = {"health_check_interval": HEALTH_CHECK_S, "driver_info": _DRIVER}
    if not url.startswith("unix"):
        options["socket_keepalive"] = True
        options["socket_connect_timeout"] = min(CONNECT_TIMEOUT_S, timeout_s or CONNECT_TIMEOUT_S)
    return options


def ping(client: redis.Redis) -> None:
    """Raise Unavailable with one line that names the address if Redis does not answer."""
    with translated_errors(client):
        client.ping()


class CircuitBreaker(Periodic):
    """A circuit breaker for callers that can do without Redis.

    After ``failed`` callers stay away from Redis until it answers a ping, which a thread sends. So an outage, or a
    server that hangs, delays only the callers that meet it first.
    """

    def __init__(self, url: str) -> None:
        self._client = connect(url, timeout_s=_PING_TIMEOUT_S, retries=0)
        self.is_away = False
        super().__init__("redis-watch", self._look, _PING_AGAIN_S, at_end=self._client.close)

    def failed(self) -> None:
        """Record that a call got no answer."""
        self.is_away = True
        self.wake()

    def _look(self) -> float | None:
        if self.is_away:
            try:
                self.is_away = not self._client.ping()
            except AWAY:
                return None
        return UNTIL_WOKEN


@contextmanager
def translated_errors(client: redis.Redis) -> Iterator[None]:
    """Raise Unavailable for every Redis error in the block."""
    try:
        yield
    except AWAY as error:
        raise unavailable(error, address(client)) from error


def address(client: redis.Redis) -> str:
    """Return the address of the client, without its password: with Sentinel the name of its service."""
    if isinstance(client.connection_pool, SentinelConnectionPool):
        return f"the primary {client.connection_pool.service_name} of Sentinel"
    where = client.connection_pool.connection_kwargs
    return str(where["path"]) if "path" in where else f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"


def unavailable(error: BaseException, where: str | None = None) -> Unavailable:
    """Return the error for callers while Redis is away."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    place = f" at {where}" if where else ""
    return Unavailable(f"Redis{place} cannot be reached: {reason}", code="redis_unavailable")


def broker_options(redis_url: str) -> dict[str, Any]:
    """Return what Celery needs to know of a redis-py URL: ``broker_url``, options of the transport, of TLS.

    ``unix:///p.sock?db=2`` becomes ``redis+socket:///p.sock?virtual_host=2``; a database in the query becomes a path;
    ``rediss://`` gets an explicit certificate verification: without it kombu connects unencrypted.
    """
    if is_sentinel(redis_url):
        return _sentinel_broker(parse_sentinel(redis_url))
    parts = urlsplit(redis_url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "unix":
        query["virtual_host"] = query.pop("db", "0")
        # Not urlunsplit: it leaves out the two slashes when there is no host.
        return {"broker_url": f"redis+socket://{parts.netloc}{parts.path}?{urlencode(query)}"}
    database = query.pop("db", "")
    path = f"/{database}" if database else parts.path
    if parts.scheme == "rediss":
        query.setdefault("ssl_cert_reqs", "required")
    return {"broker_url": urlunsplit((parts.scheme, parts.netloc, path, urlencode(query), ""))}


def _sentinel_broker(address: SentinelAddress) -> dict[str, Any]:
    """Return the options of kombu's own transport for Sentinel: one URL for each Sentinel, all with the same login."""
    login = f"{quote(address.username or '', safe='')}:{quote(address.password, safe='')}@" if address.password else ""
    hosts = [f"[{host}]" if ":" in host else host for host, _ in address.sentinels]
    ports = [port for _, port in address.sentinels]
    return {
        "broker_url": ";".join(
            f"sentinel://{login}{host}:{port}/{address.db}" for host, port in zip(hosts, ports, strict=True)
        ),
        "broker_transport_options": {
            "master_name": address.service,
            "sentinel_kwargs": sentinel_options(address),
        },
        **({"broker_use_ssl": tls_options(address)} if address.is_encrypted else {}),
    }
