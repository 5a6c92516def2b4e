"""The forms of REDIS_URL: redis-py's own, and ``redis+sentinel://host:26379,host:26379/SERVICE/0`` for Redis Sentinel.

With Sentinel, user and password before the hosts are those of the Redis servers. The Sentinels' own are the options
``sentinel_username`` and ``sentinel_password``. ``rediss+sentinel://`` encrypts the connections to both, with the TLS
options of ``rediss://``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from headrace.store.errors import SettingsError

_SCHEMES: Final = frozenset({"redis+sentinel", "rediss+sentinel"})
_DIRECT: Final = frozenset({"redis", "rediss", "unix"})
TLS_OPTIONS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"})
_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})
_PORT: Final = 26379
_FORM: Final = "redis+sentinel://host:26379,host:26379/SERVICE/0"


@dataclass(frozen=True)
class SentinelAddress:
    """The Sentinels as host and port, the name under which they watch the primary, and the numbered database.

    ``tls``: the options of TLS as they are written; empty without TLS.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    is_encrypted: bool = False
    tls: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def is_sentinel(url: str) -> bool:
    """True if the scheme of an address is one of Sentinel. Raises SettingsError for a scheme that is unknown."""
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES | _DIRECT:
        raise SettingsError(
            "REDIS_URL: needs redis://, rediss:// or unix://, or with Sentinel redis+sentinel:// or "
            f"rediss+sentinel://, not {scheme if '://' in url else ''}:// (docs/deployment.md)"
        )
    return scheme in _SCHEMES


def parse_sentinel(url: str) -> SentinelAddress:
    """Read an address with a scheme of Sentinel. Raises SettingsError, which never quotes a password."""
    scheme, _, rest = url.partition("://")
    before_query, _, query = rest.partition("?")
    authority, _, path = before_query.partition("/")
    login, _, hosts = authority.rpartition("@")
    username, _, password = login.partition(":")
    service, _, db = path.partition("/")
    if not service or not (db or "0").isdecimal():
        raise SettingsError(f"REDIS_URL: needs the service and the number of the database: {_FORM}")
    options = dict(parse_qsl(query, keep_blank_values=True))
    is_encrypted = scheme.startswith("rediss")
    _check_options(options, is_encrypted=is_encrypted)
    return SentinelAddress(
        sentinels=tuple(_host(one) for one in hosts.split(",")),
        service=unquote(service),
        db=int(db or "0"),
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_username=options.pop("sentinel_username", None),
        sentinel_password=options.pop("sentinel_password", None),
        is_encrypted=is_encrypted,
        tls=MappingProxyType(options),
    )


def _host(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        # The text is not quoted: with an @ in a password, it is a part of that.
        raise SettingsError(f"REDIS_URL: needs a host and perhaps a port for each Sentinel: {_FORM}")
    return host, port or _PORT


def _check_options(options: Mapping[str, str], *, is_encrypted: bool) -> None:
    known = _OPTIONS | TLS_OPTIONS
    if unknown := sorted(options.keys() - known):
        raise SettingsError(f"REDIS_URL: unknown option {', '.join(unknown)}: use {', '.join(sorted(known))}")
    if not is_encrypted and (tls := sorted(options.keys() & TLS_OPTIONS)):
        raise SettingsError(f"REDIS_URL: {', '.join(tls)} needs rediss+sentinel://")
