"""Postgres and Valkey in containers, for ``pytest --containers``: the images that ``deploy/compose.yaml`` names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from testcontainers.community.postgres import PostgresContainer
from testcontainers.community.redis import RedisContainer

COMPOSE = Path(__file__).parents[1] / "deploy" / "compose.yaml"


def image(service: str) -> str:
    """The image of a compose service."""
    return str(yaml.safe_load(COMPOSE.read_text())["services"][service]["image"])


@contextmanager
def running_containers() -> Iterator[tuple[str, str]]:
    """Yield DATABASE_URL and REDIS_URL of two containers that end with the block. Needs a Docker engine."""
    with (
        PostgresContainer(image("postgres"), dbname="test", driver="psycopg") as postgres,
        RedisContainer(image("valkey")) as valkey,
    ):
        host, port = valkey.get_container_host_ip(), valkey.get_exposed_port(6379)
        yield postgres.get_connection_url(), f"redis://{host}:{port}/0"
