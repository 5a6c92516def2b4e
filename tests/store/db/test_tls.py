"""TLS to Postgres and Redis: configurations refused at start, and verification of server certificates."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kombu.connection import Connection
from kombu.exceptions import OperationalError
from sqlalchemy import make_url, text

from headrace.store.db.database import Database
from headrace.store.db.roles import API
from headrace.store.db.tls import check_transport
from headrace.store.errors import SettingsError, Unavailable
from headrace.store.redis.celery_queue import celery_app
from headrace.store.redis.connection import broker_options, connect, connect_async, ping
from headrace.store.settings import Settings
from tests.roles import role_url
from tests.tls import Authority, TlsFront

LOCAL = {"database_url": "postgresql://a@/x?host=/run", "redis_url": "unix:///run/v.sock"}


@dataclass(frozen=True)
class Secured:
    """Addresses of both services behind TLS, of one who trusts the right authority and of one who trusts another."""

    database_url: str
    redis_url: str
    other_database_url: str
    other_redis_url: str
    nameless_redis_url: str


@pytest.fixture
def secured(settings: Settings, tmp_path: Path) -> Iterator[Secured]:
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    certificate, key = ours.issue("client")
    database, redis = make_url(settings.database_url), urlsplit(settings.redis_url)
    in_folder = database.query.get("host")
    postgres = TlsFront(
        ours,
        f"{in_folder}/.s.PGSQL.5432" if in_folder else (str(database.host), int(database.port or 5432)),
        negotiates=True,
    )
    valkey = TlsFront(
        ours, redis.path if redis.scheme == "unix" else (str(redis.hostname), int(redis.port or 6379)), negotiates=False
    )

    def postgres_url(trusted: Authority) -> str:
        files = {"sslrootcert": str(trusted.path), "sslcert": str(certificate), "sslkey": str(key)}
        url = make_url(role_url(settings.database_url, API)).set(
            host="127.0.0.1", port=postgres.port, query={"sslmode": "verify-full", **files}
        )
        return url.render_as_string(hide_password=False)

    def redis_url(trusted: Authority, host: str = "127.0.0.1") -> str:
        files = f"ssl_ca_certs={trusted.path}&ssl_certfile={certificate}&ssl_keyfile={key}"
        return f"rediss://{host}:{valkey.port}/0?{files}"

    yield Secured(
        postgres_url(ours), redis_url(ours), postgres_url(other), redis_url(other), redis_url(ours, "localhost")
    )
    postgres.close()
    valkey.close()


def test_every_way_to_the_services_verifies_them_and_shows_its_own_certificate(
    settings: Settings, secured: Secured
) -> None:
    check_transport(settings.model_copy(update={"database_url": secured.database_url, "redis_url": secured.redis_url}))
    db = Database(secured.database_url, pool_size=1, application_name="tests")
    with db.begin() as connection:
        assert connection.execute(text("SELECT current_user")).scalar_one() == API
        assert connection.connection.driver_connection.pgconn.ssl_in_use
    db.close()
    with connect(secured.redis_url) as client:
        ping(client)
    asyncio.run(_ping_async(secured.redis_url))
    app = celery_app(settings.model_copy(update={"redis_url": secured.redis_url}))
    with app.connection_for_write() as broker:
        broker.ensure_connection(max_retries=1)
        broker.default_channel.client.ping()
    app.close()


async def _ping_async(url: str) -> None:
    for blocking in (True, False):
        client = connect_async(url, blocking=blocking)
        await client.ping()
        await client.aclose()


def test_who_is_not_of_the_trusted_authority_or_has_another_name_is_not_spoken_to(secured: Secured) -> None:
    db = Database(secured.other_database_url, pool_size=1, application_name="tests")
    with pytest.raises(Unavailable, match="certificate"):
        db.ping()
    db.close()
    for url in (secured.other_redis_url, secured.nameless_redis_url):
        with connect(url, retries=0) as client, pytest.raises(Unavailable, match=r"(?i)certificate.verify.failed"):
            ping(client)
        with (
            Connection(broker_options(url)["broker_url"]) as broker,
            pytest.raises(OperationalError, match=r"(?i)certificate.verify.failed"),
        ):
            broker.default_channel.client.ping()


@pytest.mark.parametrize(
    "address",
    [
        {"database_url": "postgresql://a@db.example.com/x"},
        {"database_url": "postgresql://a@db.example.com/x?sslmode=require"},
        {"database_url": "postgresql://a@db.example.com:5432,localhost:5432/x?target_session_attrs=read-write"},
        {"redis_url": "redis://redis.example.com/0"},
        {"redis_url": "rediss://redis.example.com/0?ssl_cert_reqs=none"},
        {"redis_url": "rediss://redis.example.com/0?ssl_cert_reqs=optional"},
        {"redis_url": "rediss://redis.example.com/0?ssl_check_hostname=false"},
        {"redis_url": "redis://0.0.0.0/0"},
        {"redis_url": "redis+sentinel://localhost,sentinel.example.com/main"},
        {"redis_url": "rediss+sentinel://sentinel.example.com/main?ssl_cert_reqs=none"},
    ],
)
def test_what_could_be_overheard_or_forged_is_said_and_refused_where_tls_is_required(
    address: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(**(LOCAL | address))
    check_transport(settings)
    assert "connection_not_verified" in "".join(capsys.readouterr())
    with pytest.raises(SettingsError, match="HEADRACE_REQUIRE_TLS"):
        check_transport(settings.model_copy(update={"require_tls": "on"}))


@pytest.mark.parametrize(
    "address",
    [
        {},
        {"database_url": "postgresql://a@127.0.0.1/x", "redis_url": "redis://localhost/0"},
        {"database_url": "postgresql://a@db.example.com/x?sslmode=verify-full&sslrootcert=system"},
        {"database_url": "postgresql://a@127.0.0.1:5432,localhost:5433/x"},
        {"database_url": "postgresql://a@db1.example.com:5432,db2.example.com:5432/x?sslmode=verify-full"},
        {"redis_url": "rediss://redis.example.com/0"},
        {"redis_url": "redis+sentinel://localhost:26379,127.0.0.1:26380/main"},
        {"redis_url": "rediss+sentinel://a.example.com,b.example.com/main?sentinel_password=x"},
    ],
)
def test_what_is_verified_or_stays_on_this_machine_is_good(address: dict[str, str]) -> None:
    check_transport(Settings(**(LOCAL | address), require_tls="on"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ({"redis_url": "rediss://h/0?ssl_ca_cert=x"}, "REDIS_URL: unknown option ssl_ca_cert: use ssl_ca_certs"),
        ({"redis_url": "rediss://h/0?ssl_ca_certs=/no/ca"}, "REDIS_URL: ssl_ca_certs: cannot read /no/ca"),
        ({"redis_url": "redis://h/0?ssl_cert_reqs=required"}, "REDIS_URL: ssl_cert_reqs needs rediss://"),
        ({"redis_url": "sentinel://h:26379/main"}, r"REDIS_URL: needs redis://.*redis\+sentinel://.*not sentinel://"),
        ({"redis_url": "redis+sentinel://h:26379"}, "REDIS_URL: .*service"),
        ({"redis_url": "rediss+sentinel://h/main?ssl_ca_certs=/no/ca"}, "REDIS_URL: ssl_ca_certs: cannot read /no/ca"),
        ({"redis_url": "rediss://h/0?ssl_keyfile=/no/key"}, "REDIS_URL: ssl_keyfile: cannot read /no/key"),
        ({"redis_url": "rediss://h/0?ssl_certfile=/no/cert"}, "REDIS_URL: ssl_certfile: cannot read /no/cert"),
        ({"database_url": "postgresql://a@h/x?sslrootcert=/no/ca"}, "DATABASE_URL: sslrootcert: cannot read /no/ca"),
        ({"database_url": "postgresql://a@h/x?sslcert=/no/cert"}, "DATABASE_URL: sslcert: cannot read /no/cert"),
        ({"database_url": "postgresql://a@h/x?sslkey=/no/key"}, "DATABASE_URL: sslkey: cannot read /no/key"),
    ],
)
def test_an_option_that_would_not_hold_stops_the_process(address: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        check_transport(Settings(**(LOCAL | address)))
