"""Checks the TLS options in the addresses of Postgres and Redis before a connection is opened.

Both drivers read TLS options from the address: ``sslmode``, ``sslrootcert``, ``sslcert``, ``sslkey`` for Postgres;
``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_cert_reqs``, ``ssl_check_hostname`` with ``rediss://``. An
option that a driver would ignore, or a file that is missing, is refused here. With Sentinel the options are those of
``store.redis_address``, and hold for the Sentinels and for Redis.
"""

import os
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import structlog
from psycopg.pq import Conninfo
from sqlalchemy import URL

from headrace.store.db.database import parse_url
from headrace.store.errors import SettingsError
from headrace.store.redis_address import TLS_OPTIONS, is_sentinel, parse_sentinel
from headrace.store.settings import Settings

_log = structlog.get_logger("headrace.store")

_HERE: Final = frozenset({"", "localhost", "127.0.0.1", "::1"})
_REDIS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_POSTGRES_FILES: Final = ("sslrootcert", "sslcert", "sslkey")
_VERIFYING: Final = frozenset({"required", "cert_required"})


def check_transport(settings: Settings) -> None:
    """Warn if the connection to another host is not encrypted and verified; with ``HEADRACE_REQUIRE_TLS=on`` raise
    SettingsError. Raises SettingsError for an unknown TLS option, for one that names a missing file, and for an address
    of Redis with another scheme."""
    to_redis = _redis(settings.redis_url) if settings.redis_url else None
    urls = {"DATABASE_URL": settings.database_url, "HEADRACE_LISTS_DATABASE_URL": settings.lists_database_url}
    weak = [found for found in (*(_postgres(name, url) for name, url in urls.items() if url), to_redis) if found]
    if weak and settings.require_tls == "on":
        raise SettingsError(f"HEADRACE_REQUIRE_TLS is on, and {'; '.join(weak)}")
    for found in weak:
        _log.warning("connection_not_verified", reason=found)


def _postgres(variable: str, address: str) -> str | None:
    url = parse_url(address)
    query = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    _check_files(variable, query, _POSTGRES_FILES)
    away = [host for host in _postgres_hosts(url) if host not in _HERE and not host.startswith("/")]
    if not away or query.get("sslmode") == "verify-full":
        return None
    return f"{variable}: {away[0]} is another host: say sslmode=verify-full, and sslrootcert for a CA of your own"


def _postgres_hosts(url: URL) -> list[str]:
    """Return all hosts that the driver may connect to.

    The options ``host`` and ``hostaddr`` go before the address, and the address before the defaults of libpq, which
    PGHOST, PGHOSTADDR and PGSERVICE change.
    """
    defaults = {one.keyword: (one.val or b"").decode() for one in Conninfo.get_defaults()}
    named = [host.rpartition(":")[0] or host for host in _listed(url, "host")]
    return [*(named or [url.host or defaults[b"host"]]), *(_listed(url, "hostaddr") or [defaults[b"hostaddr"]])]


def _listed(url: URL, name: str) -> list[str]:
    value = url.query.get(name) or ()
    return [one for part in ([value] if isinstance(value, str) else value) for one in part.split(",")]


def _redis(address: str) -> str | None:
    if is_sentinel(address):
        given = parse_sentinel(address)
        hosts, query, is_encrypted = [host for host, _ in given.sentinels], given.tls, given.is_encrypted
        wanted = "rediss+sentinel://"
    else:
        parts = urlsplit(address)
        query = _redis_options(address)
        hosts, is_encrypted, wanted = [parts.hostname or ""], parts.scheme == "rediss", "rediss://"
        if parts.scheme == "unix":
            return None
    _check_files("REDIS_URL", query, _REDIS_FILES)
    away = [host for host in hosts if host not in _HERE]
    is_verified = query.get("ssl_cert_reqs", "required").lower() in _VERIFYING
    if not away or (is_encrypted and is_verified and query.get("ssl_check_hostname", "true").lower() == "true"):
        return None
    return f"REDIS_URL: {away[0]} is another host: say {wanted}, and ssl_ca_certs for a CA of your own"


def _redis_options(address: str) -> dict[str, str]:
    """Return the options of an address without Sentinel. Raises SettingsError for an unknown option."""
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query))
    unknown = sorted(name for name in query if name.startswith("ssl") and name not in TLS_OPTIONS)
    if unknown:
        raise SettingsError(f"REDIS_URL: unknown option {', '.join(unknown)}: use {', '.join(sorted(TLS_OPTIONS))}")
    if parts.scheme != "rediss" and query.keys() & TLS_OPTIONS:
        raise SettingsError(f"REDIS_URL: {', '.join(sorted(query.keys() & TLS_OPTIONS))} needs rediss://")
    return query


def _check_files(variable: str, query: Mapping[str, str], names: tuple[str, ...]) -> None:
    for name in names:
        path = query.get(name)
        # "system" stands for the CAs that the machine trusts.
        if path and path != "system" and not os.access(path, os.R_OK):
            raise SettingsError(f"{variable}: {name}: cannot read {path}")
