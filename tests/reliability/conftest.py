"""A server for the databases of many stacks, and a stack of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from headrace.store.db.database import parse_url
from tests.conftest import Services
from tests.figures import Report, is_full, report
from tests.folders import reachable_folder
from tests.reliability.rig import Databases, Stack
from tests.store.conftest import make_job, tenant

__all__ = ["Report", "is_full", "make_job", "report", "tenant"]


@pytest.fixture(scope="session")
def databases(services: Services) -> Iterator[Databases]:
    """Create a new database on the session's server."""
    server = create_engine(parse_url(services.database_url), pool_size=2)
    databases = Databases(server, services.redis_url)
    yield databases
    databases.close()
    server.dispose()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where processes keep their logs."""
    with reachable_folder() as folder:
        yield folder


@pytest.fixture
def stack(databases: Databases, folder: Path) -> Iterator[Stack]:
    """A stack of the test's own, with nothing running yet."""
    with databases.stack(folder) as stack:
        yield stack
