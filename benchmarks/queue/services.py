"""The Postgres and the Redis that all contestants share, from the embedded stack, in a folder that goes away."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from headrace.cli.local.postgres import LocalPostgres
from headrace.cli.local.valkey import LocalValkey
from headrace.store.redis.connection import connect


@dataclass(frozen=True)
class Services:
    """Both servers, and a folder for logs and for what contestants leave."""

    folder: Path
    postgres: LocalPostgres
    valkey: LocalValkey

    @property
    def database_url(self) -> str:
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        return self.valkey.url

    @property
    def layers(self) -> dict[str, list[int]]:
        """The servers' root processes, for the costs."""
        children = {"Postgres": self.postgres.child, "Redis": self.valkey.child}
        return {name: [child.pid] for name, child in children.items() if child}

    def empty_redis(self, *, append_only: bool) -> None:
        """Forget what the contestant before left there."""
        with connect(self.redis_url) as client:
            client.config_set("appendonly", "yes" if append_only else "no")
            client.flushall()


@contextmanager
def running_services() -> Iterator[Services]:
    """Yield both servers, with ``pg_stat_statements`` loaded; on leaving they stop and the folder goes."""
    folder = Path(tempfile.mkdtemp(prefix="hr-"))
    folder.chmod(0o711)  # PostgreSQL does not run as root: its own user must enter the folder
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres = LocalPostgres(folder / "pg", folder / "postgres.log")
        cleanup.callback(postgres.stop)
        postgres.start()
        with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        postgres.stop()
        postgres.start()
        valkey = LocalValkey(folder / "kv", folder / "valkey.log")
        cleanup.callback(valkey.stop)
        valkey.start()
        yield Services(folder, postgres, valkey)
