"""Addresses, errors and settings of connections to Postgres, and the limits without Redis: exactly."""

import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from headrace.store.db import database, leader_election
from headrace.store.db.database import Database, check_schema, is_migrated, parse_url, with_setting
from headrace.store.db.leader_election import lead
from headrace.store.db.roles import API, ROLES, can_log_in, is_bound, url_of
from headrace.store.db.tls import check_transport
from headrace.store.errors import InvalidRequest, SettingsError, StatementTimeout, Unavailable
from headrace.store.json_text import dump_json
from headrace.store.redis.connection import connect
from headrace.store.redis.rate_limiter import Decision, Limiter, Spend
from headrace.store.schema.tables import REVISION
from headrace.store.settings import Settings
from tests.roles import as_api
from tests.store.making import Query


@pytest.fixture
def single(settings: Settings) -> Iterator[Database]:
    """A pool with one connection. A statement may take a little over a second."""
    database = Database(
        settings.database_url,
        pool_size=1,
        application_name="single",
        statement_timeout_s=1.25,
        lock_timeout_s=1.5,
        idle_timeout_s=60.5,
    )
    yield database
    database.close()


@pytest.mark.parametrize(
    ("url", "query"),
    [
        ("postgres://a:1,b:2/x", {"host": ("a:1", "b:2")}),
        ("postgresql://u:p@a,b", {"host": ("a", "b")}),
        ("postgresql://u:p,q@a,b/x?sslmode=require", {"sslmode": "require", "host": ("a", "b")}),
        ("postgresql://u@/x?host=/run", {"host": "/run"}),
    ],
)
def test_an_address_of_several_servers_names_each(url: str, query: dict[str, Any]) -> None:
    assert parse_url(url).query == query


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://h/x", "DATABASE_URL: .*postgresql://.*mysql://"),
        ("secret", "DATABASE_URL: .*postgresql://user@host/database$"),
        ("postgresql://u:secret@h:port/x", "DATABASE_URL: .*postgresql://user@host/database$"),
    ],
)
def test_another_address_is_refused_and_not_shown(url: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as caught:
        parse_url(url)
    assert "secret" not in caught.value.message


def test_a_statement_that_takes_too_long_is_given_up(single: Database) -> None:
    with pytest.raises(StatementTimeout), single.autocommit() as connection:
        connection.execute(text("SELECT pg_sleep(60)"))
    with single.autocommit() as connection:
        shown = [
            connection.execute(text(f"SHOW {name}")).scalar_one()
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        ]
    assert shown == ["1250ms", "1500ms", "60500ms"]


def test_a_server_that_closes_new_connections_is_away(single: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    is_closed = SimpleNamespace(register=lambda *_: None, poll=lambda _ms: [(0, 1)])
    monkeypatch.setattr(database, "select", SimpleNamespace(poll=lambda: is_closed, POLLIN=1))
    for use in (single.autocommit, single.begin):
        with pytest.raises(Unavailable) as caught, use():
            pass
        assert caught.value.code == "database_unavailable"


def test_a_value_that_cannot_be_encoded_is_refused() -> None:
    for value in ("\ud800", 2**70):
        with pytest.raises(InvalidRequest, match="Unicode"):
            dump_json({"a": value})
    assert dump_json({"a": ["é", 1.5, None]}) == '{"a":["é",1.5,null]}'


def test_a_value_out_of_range_is_refused(db: Database) -> None:
    with pytest.raises(InvalidRequest, match=r"U\+0000"), db.autocommit() as connection:
        connection.execute(text("SELECT CAST(:n AS int)"), {"n": 2**40})


def test_a_schema_of_another_release_says_what_to_do(db: Database) -> None:
    def refused() -> str:
        with pytest.raises(Unavailable) as caught:
            check_schema(db)
        assert caught.value.code == "database_unavailable"
        assert not is_migrated(db)
        return caught.value.message

    check_schema(db)
    assert is_migrated(db)
    with db.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    try:
        assert re.search(f"0001.*{REVISION}.*`headrace migrate`", refused())
        with db.begin() as connection:
            connection.execute(text("DELETE FROM alembic_version"))
        assert re.search("empty.*`headrace migrate`", refused())
    finally:
        with db.begin() as connection:
            connection.execute(text("DELETE FROM alembic_version"))
            connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": REVISION})


class TestTenants:
    def whose(self, connection: Any) -> str:
        return str(connection.execute(text("SELECT current_setting('headrace.tenant', true)")).scalar_one())

    def test_one_or_several_are_set_together(self, db: Database) -> None:
        with db.begin(tenant_id="a", tenant_ids=["b", "c"]) as connection:
            assert self.whose(connection) == "a,b,c"
        with db.autocommit(tenant_ids=["b"]) as connection:
            assert self.whose(connection) == "b"
        with (
            pytest.raises(ValueError, match="comma"),
            db.begin(tenant_id="a,b"),
        ):
            pass

    def test_a_setting_goes_before_the_first_statement_or_before_each(self, db: Database) -> None:
        shown = text("SHOW enable_seqscan")
        setting = "SELECT set_config('enable_seqscan', 'off', true)"
        with db.autocommit() as connection:
            found = with_setting(connection, setting)
            assert [found.execute(shown).scalar_one() for _ in range(2)] == ["off", "off"]
            assert (
                with_setting(found, "SELECT set_config('enable_sort', %s, true)", "off").execute(shown).scalar_one()
                == "on"
            )
        with db.begin() as connection:
            found = with_setting(connection, setting)
            assert found.execute(shown).scalar_one() == "off"
            found.execute(text("SET LOCAL enable_seqscan = on"))
            assert found.execute(shown).scalar_one() == "on", "it was sent once"


def test_a_leader_asks_at_most_once_a_second(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(leader_election, "time", SimpleNamespace(monotonic=lambda: now))
    with lead(db, 7001, silence_s=20.0) as lead_held:
        assert lead_held is not None
        with db.autocommit() as connection:
            (pid,) = connection.execute(
                text("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 7001 AND granted")
            ).scalars()
            connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        now = 100.9
        lead_held.check()
        now = 101.0
        with pytest.raises(Unavailable, match="connection") as caught:
            lead_held.check()
        assert caught.value.code == "database_unavailable"


def test_a_leader_has_a_limit_for_silence_and_leaves_nothing_in_its_session(db: Database, query: Query) -> None:
    shown = text("SHOW idle_in_transaction_session_timeout")
    with lead(db, 7002, silence_s=20.0) as held:
        assert held is not None
        assert held.connection.execute(shown).scalar_one() == "20s"
        with lead(db, 7002) as other:
            assert other is None
        (row,) = query("SELECT backend_xmin FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE objid = 7002")
        assert row["backend_xmin"] is None, "it keeps no row from being vacuumed"
        pid = held.connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with lead(db, 7002) as again:
        assert again is not None
        assert again.connection.execute(shown).scalar_one() == "15s"
    with db.autocommit() as after:
        assert after.execute(text("SELECT pg_backend_pid()")).scalar_one() == pid
        assert after.execute(shown).scalar_one() == "1min"


def test_the_role_of_the_api_is_bound_to_its_tenant(db: Database, settings: Settings) -> None:
    assert url_of("postgres://u:p@h/x?sslmode=require", API, "q@") == (
        "postgresql+psycopg://headrace_api:q%40@h/x?sslmode=require"
    )
    assert url_of("postgresql://u@h/x", API) == "postgresql+psycopg://headrace_api@h/x"
    assert ROLES == ("headrace_api", "headrace_worker", "headrace_operator")
    assert (is_bound(db), can_log_in(db)) == (False, True)
    bound = as_api(settings)
    restricted = Database(bound.database_url, pool_size=1, application_name="tests")
    try:
        assert is_bound(restricted)
    finally:
        restricted.close()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (
            {"database_url": "postgresql://a@h1,db.example.com:5432/x"},
            "DATABASE_URL: h1 .*sslmode=verify-full.* sslrootcert",
        ),
        (
            {"database_url": "postgresql://a@h/x?sslmode=verify-ca"},
            "DATABASE_URL: h .*sslmode=verify-full.* sslrootcert",
        ),
        *(
            (
                {"database_url": f"postgresql://a@{written}"},
                "DATABASE_URL: far .*sslmode=verify-full.* sslrootcert",
            )
            for written in ("localhost/x?host=far", "localhost/x?hostaddr=far", "/x?host=/run,far:5433", "far/x?host=")
        ),
        (
            {"redis_url": "redis+sentinel://localhost,s.example.com/main"},
            r"REDIS_URL: s\.example\.com .*rediss\+sentinel://.* ssl_ca_certs",
        ),
        (
            {"redis_url": "rediss://r.example.com/0?ssl_cert_reqs=optional"},
            r"REDIS_URL: r\.example\.com .*rediss://.* ssl_ca_certs",
        ),
        (
            {"database_url": "postgresql://a@h/x", "redis_url": "redis://r/0"},
            "DATABASE_URL: h .*sslrootcert.*REDIS_URL: r .*rediss://.* ssl_ca_certs",
        ),
    ],
)
def test_a_way_that_is_not_verified_is_named(address: dict[str, str], why: str) -> None:
    local = {"database_url": "postgresql://a@/x?host=/run", "redis_url": "unix:///run/v.sock"}
    with pytest.raises(SettingsError, match=f"HEADRACE_REQUIRE_TLS .*{why}"):
        check_transport(Settings(**(local | address), require_tls="on"))


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("PGHOST", "postgresql://a@/x"),
        ("PGHOSTADDR", "postgresql://a@/x"),
        ("PGHOSTADDR", "postgresql://a@localhost/x"),
    ],
)
def test_a_host_in_the_variables_of_the_driver_is_checked(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    monkeypatch.setenv(name, "far")
    with pytest.raises(SettingsError, match="DATABASE_URL: far "):
        check_transport(Settings(database_url=url, redis_url="", require_tls="on"))
    check_transport(Settings(database_url=f"{url}?host=localhost&hostaddr=::1", redis_url="", require_tls="on"))


@pytest.mark.parametrize(
    "address",
    [
        {"database_url": "postgresql://a@[::1]/x", "redis_url": "redis://[::1]/0"},
        {"database_url": "", "redis_url": ""},
        {"database_url": "postgresql://a@/x"},
        {"redis_url": "rediss://r.example.com/0?ssl_cert_reqs=CERT_REQUIRED&ssl_check_hostname=True"},
        {"database_url": "postgresql://a@/x?host=/run&host=localhost"},
        {"database_url": "postgresql://a@h/x?host=localhost:5433&hostaddr=127.0.0.1"},
    ],
)
def test_this_machine_and_a_verified_host_are_good(address: dict[str, str]) -> None:
    check_transport(Settings(**address, require_tls="on"))


class Breaker:
    def __init__(self) -> None:
        self.is_away = False
        self.num_failed = 0

    def failed(self) -> None:
        self.num_failed += 1


class TestWithoutRedis:
    """The limits of one process at its share of the half: as values, by a clock of the test's own."""

    @pytest.fixture
    def now(self) -> list[float]:
        return [100.0]

    def limiter(self, now: list[float], num_processes: int = 1, breaker: Any = None) -> Limiter:
        client = connect("redis://127.0.0.1:1/0", retries=0)
        return Limiter(client, breaker=breaker, num_processes=lambda: num_processes, clock=lambda: now[0])

    def test_half_of_a_limit_is_shared_by_the_processes(self, now: list[float]) -> None:
        limiter = self.limiter(now, num_processes=2)
        # A share of 15 of 60 a minute: a unit in 4 s, 15 at once.
        assert limiter.check("a", per_minute=60, cost=10) == Decision(True, 5, 0.0, 40.0)
        assert limiter.check("a", per_minute=60, cost=0) == Decision(True, 5, 0.0, 40.0)
        assert limiter.check("a", per_minute=60, cost=6) == Decision(False, 5, 4.0, 40.0)
        now[0] += 4.0
        assert limiter.check("a", per_minute=60, cost=6) == Decision(True, 0, 0.0, 60.0)
        now[0] += 1000.0
        assert limiter.check("a", per_minute=60, cost=0) == Decision(True, 15, 0.0, 0.0)
        assert limiter.check("b", per_minute=60, burst=8) == Decision(True, 1, 0.0, 4.0)

    def test_a_cost_above_the_share_fits_while_nothing_was_spent(self, now: list[float]) -> None:
        limiter = self.limiter(now)
        # 30 at once; up to twice the share a single cost may be.
        assert limiter.check("a", per_minute=60, cost=60) == Decision(True, 0, 0.0, 120.0)
        assert limiter.check("b", per_minute=60, cost=61) == Decision(False, 0, math.inf, 0.0)
        shared = self.limiter(now, num_processes=2)
        assert [shared.check(f"{cost}", per_minute=60, cost=cost).allowed for cost in (30, 31)] == [True, False]
        assert limiter.check_all([]) == []
        assert limiter.check_all([Spend("c", 60), Spend("d", 60, 61)]) == [Decision(False, 0, math.inf, 0.0)] * 2

    def test_a_group_is_spent_only_as_a_whole(self, now: list[float]) -> None:
        limiter = self.limiter(now)
        group = [Spend("a", 60, 20), Spend("b", 60, 20)]
        assert limiter.check_all(group) == [Decision(True, 10, 0.0, 40.0)] * 2
        refused = [Spend("a", 60, 10), Spend("b", 60, 11)]
        assert limiter.check_all(refused) == [Decision(True, 10, 0.0, 40.0), Decision(False, 10, 2.0, 40.0)]
        assert limiter.check("a", per_minute=60, cost=10) == Decision(True, 0, 0.0, 60.0)

    def test_a_failure_opens_the_breaker_and_redis_is_left_alone(self, now: list[float]) -> None:
        breaker = Breaker()
        limiter = self.limiter(now, breaker=breaker)
        for _ in range(3):
            limiter.check("a", per_minute=60)
        assert breaker.num_failed == 1, "for a second Redis is not asked"
        now[0] += 1.0
        limiter.check("a", per_minute=60)
        assert breaker.num_failed == 2
        now[0] += 1.0
        breaker.is_away = True
        limiter.check("a", per_minute=60)
        assert breaker.num_failed == 2
