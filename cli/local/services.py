"""Postgres and Redis for a stack: those of the given addresses, or embedded ones."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from headrace.cli.local.home import Home
from headrace.cli.local.postgres import LocalPostgres
from headrace.cli.local.valkey import LocalValkey
from headrace.store.db.database import Database
from headrace.store.db.roles import url_of
from headrace.store.redis.connection import connect, ping
from headrace.store.settings import Settings
from headrace.store.supervisor import Supervised


@dataclass(frozen=True)
class Services:
    """The addresses of both services, and the embedded ones among them.

    ``has_roles``: the database is embedded, so each process has its own role in it.
    """

    database_url: str
    redis_url: str
    servers: tuple[Supervised, ...]
    has_roles: bool

    def url_of(self, role: str) -> str:
        """Return the database's address for the role of a process."""
        return url_of(self.database_url, role) if self.has_roles else self.database_url


@contextmanager
def running_services(settings: Settings, home: Home, say: Callable[[str], None]) -> Iterator[Services]:
    """Yield running services. At the end the embedded ones are stopped, Valkey first.

    Raises Unavailable if a given address does not answer or a server does not start.
    """
    with ExitStack() as stack:
        database_url, redis_url, servers = settings.database_url, settings.redis_url, list[Supervised]()
        if database_url:
            _check_database(database_url)
            say("PostgreSQL: the one at DATABASE_URL")
        else:
            postgres = LocalPostgres(home.path / "pg", home.log("postgres"))
            stack.callback(postgres.stop)
            postgres.start()
            database_url = postgres.url
            servers.append(postgres)
            say("PostgreSQL started")
        if redis_url:
            _check_redis(redis_url)
            say("Redis: the one at REDIS_URL")
        else:
            valkey = LocalValkey(home.path / "valkey", home.log("valkey"))
            stack.callback(valkey.stop)
            valkey.start()
            redis_url = valkey.url
            servers.append(valkey)
            say("Valkey started")
        yield Services(database_url, redis_url, tuple(servers), has_roles=not settings.database_url)


def _check_database(url: str) -> None:
    db = Database(url, pool_size=1, application_name="headrace up")
    try:
        db.ping()
    finally:
        db.close()


def _check_redis(url: str) -> None:
    with connect(url, timeout_s=5) as client:
        ping(client)
