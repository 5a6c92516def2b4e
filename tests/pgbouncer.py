"""A real PgBouncer before a Postgres of the tests, with the settings of ``deploy/pgbouncer.ini``."""

import os
import shutil
import socket
from collections.abc import Iterator
from configparser import RawConfigParser
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from headrace.cli.local.folders import private_folder, unprivileged_user
from headrace.store.child_process import Child, Command
from headrace.store.db.database import parse_url
from headrace.store.db.roles import ROLES
from tests.processes import ROOT, free_port, wait_for
from tests.roles import ROLE_PASSWORD

# Debian installs it where only root looks.
_PATH = f"{os.defpath}:/usr/sbin:/usr/local/sbin"


@contextmanager
def running_pgbouncer(folder: Path, database_url: str, *, pool_size: int) -> Iterator[str]:
    """Yield the address of the same database through a pooler; skip the test where PgBouncer is not installed."""
    binary = shutil.which("pgbouncer", path=_PATH)
    if binary is None:
        pytest.skip("PgBouncer is not installed")
    user = unprivileged_user()
    folder = private_folder(folder / "pgbouncer", user)
    direct = parse_url(database_url)
    port = free_port()
    users = folder / "users.txt"
    users.write_text("".join(f'"{name}" "{ROLE_PASSWORD}"\n' for name in (*ROLES, direct.username)))
    config = RawConfigParser()
    config.read(ROOT / "deploy" / "pgbouncer.ini")
    _, found, limits = config["databases"]["headrace"].partition("connect_query")
    config["databases"] = {"*": f"host={_host(direct)} port={direct.port or 5432} {found}{limits}"}
    config["pgbouncer"].update(
        {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_file": str(users),
            "auth_type": "trust",
            "default_pool_size": str(pool_size),
        }
    )
    file = folder / "pgbouncer.ini"
    with file.open("w") as written:
        config.write(written)
    child = Child(Command("pgbouncer", [binary, file], folder / "pgbouncer.log", env={"PATH": _PATH}, user=user))
    url = direct.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
    try:
        wait_for(lambda: _listens(port), lambda: f"PgBouncer answers: {child.log_tail()}")
        yield url
    finally:
        child.kill()


def _host(url: URL) -> str:
    host = url.query.get("host", url.host or "")
    return host if isinstance(host, str) else host[0]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
