"""The audit log in Postgres: every writer chains its rows, rows are immutable, and tampering is found."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from headrace.features.audit import export
from headrace.features.audit.hash_chain import Finding, Head, Problem, Verifier, row_hash
from headrace.store import audit_log as audit
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.ids import new_id
from headrace.store.settings import Settings, child_environment
from tests.store.making import Query

OFF = "ALTER TABLE audit_log DISABLE TRIGGER USER"
ON = "ALTER TABLE audit_log ENABLE TRIGGER USER, ENABLE ALWAYS TRIGGER headrace_audit_append_only"


def write(db: Database, tenant_id: str | None, *, times: int = 1, **more: Any) -> None:
    for _ in range(times):
        with db.begin() as connection:
            audit.record(connection, tenant_id, "key_1", "queue.paused", "tiny@1", {"n": 1, "ä": "€\n\x7f"}, **more)


def verify(db: Database, *heads: Head) -> list[Finding]:
    verifier = Verifier(heads)
    found = [one for tenant in export.chains(db) for row in export.rows(db, tenant) if (one := verifier.check(row))]
    return [*found, *verifier.check_ends()]


def test_every_row_is_chained_and_what_was_before_and_after_is_a_hash(db: Database, tenant: str) -> None:
    secret = {"secret": new_id("whsec")}
    write(db, tenant, before=secret, after=[1.5], request_id="req_1", address="::1")
    write(db, None)
    assert verify(db) == []
    rows = {who: list(export.rows(db, who)) for who in (tenant, None)}
    assert [row["seq"] for row in rows[tenant]] == [1, 2], "the tenant's making is the first"
    assert [row["seq"] for row in rows[None]] == [1]
    newest = rows[tenant][-1]
    assert (newest["request_id"], newest["address"]) == ("req_1", "::1")
    assert newest["before_hash"] == audit.hash_of(secret)
    assert secret["secret"] not in str(rows)
    assert audit.hash_of({"a": 1, "b": 2}) == audit.hash_of({"b": 2, "a": 1}), "the order of fields is no change"
    assert {head.chain: (head.seq, head.hash) for head in export.heads(db)} == {
        tenant: (2, newest["hash"]),
        "system": (1, rows[None][0]["hash"]),
    }


def test_an_insert_chooses_neither_place_nor_time(db: Database, tenant: str, query: Query) -> None:
    """An older release inserts without a place; an attacker may choose one."""
    query(
        "INSERT INTO audit_log (id, tenant_id, actor, action, resource, at, seq, prev_hash, hash) "
        "SELECT 1, :tenant, 'a', 'b', 'c', '2001-01-01', 1, 'x', 'y' FROM generate_series(1, 3)",
        tenant=tenant,
    )
    assert verify(db) == []
    rows = list(export.rows(db, tenant))
    assert [row["seq"] for row in rows] == [1, 2, 3, 4]
    assert sorted(row["id"] for row in rows) == [row["id"] for row in rows]
    # The times alone: four digits are found in a random id or hash now and then.
    assert not any(row["at"].startswith("2001") for row in rows)


@pytest.mark.parametrize("number", [1.5, 10**15])
def test_a_number_that_others_read_otherwise_is_refused(db: Database, tenant: str, number: float) -> None:
    with pytest.raises(InvalidRequest), db.begin() as connection:
        audit.record(connection, tenant, "a", "b", "c", {"n": [number]})
    assert len(audit.list_entries(db, tenant)) == 1


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_log SET actor = 'x' WHERE id = 0", "DELETE FROM audit_log WHERE id = 0", "TRUNCATE audit_log"],
)
@pytest.mark.parametrize("role", ["origin", "replica"])
def test_nobody_changes_or_removes_a_row(db: Database, tenant: str, statement: str, role: str) -> None:
    """The owner, a superuser here, runs them; replica: a session in which ordinary triggers do not fire."""
    with db.begin() as connection:
        connection.execute(text(f"SET LOCAL session_replication_role = {role}"))
        with pytest.raises(ProgrammingError, match="append-only"):
            connection.execute(text(statement))
        connection.rollback()
    assert len(audit.list_entries(db, tenant)) == 1


def test_changes_made_without_the_triggers_are_found(
    db: Database, tenant: str, query: Query, subtests: pytest.Subtests
) -> None:
    write(db, tenant, times=5)
    write(db, None)
    assert export.missing_guards(db) == []
    heads = export.heads(db)
    rows = list(export.rows(db, tenant))
    anew = row_hash(rows[2] | {"actor": "nobody"})
    for statement, problem, seq in (
        ("UPDATE audit_log SET detail = '{}' WHERE id = :third", Problem.CHANGED, 3),
        ("UPDATE audit_log SET at = 'infinity' WHERE id = :third", Problem.CHANGED, 3),
        ("UPDATE audit_log SET detail = '{\"n\": 1e30}' WHERE id = :third", Problem.CHANGED, 3),
        (f"UPDATE audit_log SET actor = 'nobody', hash = '{anew}' WHERE id = :third", Problem.REPLACED, 4),
        ("DELETE FROM audit_log WHERE id = :third", Problem.MISSING, 4),
        ("DELETE FROM audit_log WHERE id > :third AND tenant_id IS NOT NULL", Problem.CUT, 4),
        ("DELETE FROM audit_log WHERE tenant_id IS NULL", Problem.CUT, 1),
        (
            "ALTER TABLE audit_log ALTER seq DROP NOT NULL; UPDATE audit_log SET seq = NULL WHERE id = :third",
            Problem.CHANGED,
            0,
        ),
        (
            "ALTER TABLE audit_log DROP CONSTRAINT uq_audit_log_tenant_id_seq;"
            "INSERT INTO audit_log (tenant_id, actor, action, resource, seq, prev_hash, hash) "
            "SELECT tenant_id, actor, action, resource, seq, prev_hash, hash FROM audit_log WHERE id = :third",
            Problem.CHANGED,
            3,
        ),
    ):
        with subtests.test(statement), db.begin() as connection:
            connection.execute(text(OFF))
            for part in statement.split(";"):
                connection.execute(text(part), {"third": rows[2]["id"]} if ":third" in part else {})
            # Of this transaction alone, which is rolled back.
            inside = _Held(connection)
            assert (problem, seq) in [(one.problem, one.seq) for one in verify(inside, *heads)]  # type: ignore[arg-type]
            assert len(export.missing_guards(inside)) == 2  # type: ignore[arg-type]
            connection.rollback()
    assert verify(db, *heads) == []


def test_a_trigger_of_another_table_guards_nothing(db: Database) -> None:
    name = "headrace_audit_append_only"
    with db.begin() as connection:
        function = connection.execute(text("SELECT tgfoid::regproc FROM pg_trigger WHERE tgname = :n"), {"n": name})
        for statement in (
            f"DROP TRIGGER {name} ON audit_log",
            "CREATE TABLE another_log (id text)",
            f"CREATE TRIGGER {name} BEFORE UPDATE ON another_log EXECUTE FUNCTION {function.scalar_one()}()",
            f"ALTER TABLE another_log ENABLE ALWAYS TRIGGER {name}",
        ):
            connection.execute(text(statement))
        assert export.missing_guards(_Held(connection)) == [name]  # type: ignore[arg-type]
        connection.rollback()


class _Held:
    """A database all of whose statements run in one open transaction."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def autocommit(self, **_: object) -> "_Held":
        return self

    def __enter__(self) -> Any:
        return self._connection

    def __exit__(self, *_: object) -> None:
        return


WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from headrace.store.audit_log import record
from headrace.store.db.database import Database

db = Database(sys.argv[1], pool_size=5, application_name="tests")

def write(number):
    with db.begin() as connection:
        for turn in range(2):
            record(connection, sys.argv[2], f"writer-{number}", "queue.paused", "tiny@1", {"turn": turn})
        if number % 5 == 4:
            connection.rollback()

with ThreadPoolExecutor(5) as pool:
    list(pool.map(write, range(25)))
db.close()
"""


def test_many_writers_in_many_processes_make_one_chain(db: Database, settings: Settings, tenant: str) -> None:
    barrier = Barrier(5)

    def here(number: int) -> None:
        barrier.wait(30)
        write(db, tenant, times=10)
        write(db, None, times=2)

    argv = [sys.executable, "-c", WRITER, settings.database_url, tenant]
    with ExitStack() as stack:
        started = [stack.enter_context(subprocess.Popen(argv, env=child_environment({}))) for _ in range(3)]
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(here, range(5)))
    assert [process.returncode for process in started] == [0, 0, 0]
    assert verify(db) == []
    # Those that were rolled back left no gap.
    assert {head.chain: head.seq for head in export.heads(db)} == {tenant: 1 + 3 * 20 * 2 + 50, "system": 10}
    rows = list(export.rows(db, tenant))
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows), "the order is that of the commits"


def test_a_chain_longer_than_a_page_is_read_whole(
    db: Database, tenant: str, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(db, tenant, times=7)
    monkeypatch.setattr(export, "PAGE_ROWS", 2)
    assert [row["seq"] for row in export.rows(db, tenant)] == [*range(1, 9)]


def test_entries_are_found_by_time_action_actor_resource_and_page(db: Database, tenant: str, other_tenant: str) -> None:
    with db.begin() as connection:
        for actor, action, resource in (("mia", "a", "x"), ("kai", "b", "x"), ("mia", "b", "y"), ("mia", "c", "z")):
            audit.record(connection, tenant, actor, action, resource, {})
        audit.record(connection, other_tenant, "mia", "b", "x", {})
    everything = audit.list_entries(db, tenant)
    names = [entry.action + entry.resource for entry in everything]
    assert (names[:4], len(names)) == (["cz", "by", "bx", "ax"], 5)

    def found(**only: Any) -> list[str]:
        entries = audit.list_entries(db, tenant, only=audit.EntryFilter(**only))
        return [entry.action + entry.resource for entry in entries]

    assert found(actors=["mia"]) == ["cz", "by", "ax"]
    assert found(actions=["b", "c"]) == ["cz", "by", "bx"]
    assert found(resources=["x"], actions=["b"]) == ["bx"]
    ids = [entry.id for entry in everything]

    def page(limit: int = 9, **ends: int) -> list[int]:
        return [entry.id for entry in audit.list_entries(db, tenant, limit, **ends)]

    assert page(2) == ids[:2]
    assert page(2, older_than=ids[1]) == ids[2:4]
    assert page(2, newer_than=ids[3]) == ids[1:3], "the page next to that id, newest first"
    assert page(2, newer_than=ids[4], older_than=ids[0]) == ids[1:3]


def test_times_of_a_filter_begin_with_the_first_and_end_before_the_last(
    db: Database, tenant: str, query: Query
) -> None:
    write(db, tenant, times=2)
    query(OFF)
    for second, entry in enumerate(reversed(audit.list_entries(db, tenant))):
        query("UPDATE audit_log SET at = to_timestamp(:s) WHERE id = :id", s=1_700_000_000 + second, id=entry.id)
    query(ON)
    only = audit.EntryFilter(since_s=1_700_000_001, until_s=1_700_000_002)
    assert [entry.seq for entry in audit.list_entries(db, tenant, only=only)] == [2]


def test_the_context_names_the_request_and_a_long_address_is_cut(db: Database, tenant: str) -> None:
    def ask() -> None:
        audit.bind_caller("req_7", "a" * 300)
        write(db, tenant)
        write(db, tenant, request_id="req_8", address="::1")
        audit.bind_caller("req_9", None)
        write(db, tenant)

    copy_context().run(ask)
    told = [(entry.request_id, entry.address) for entry in audit.list_entries(db, tenant, 3)]
    assert told == [("req_9", None), ("req_8", "::1"), ("req_7", "a" * 255)]
    with pytest.raises(InvalidRequest, match="not JSON"):
        audit.hash_of({"secret": object()})


def test_heads_are_read_from_the_log_and_as_they_were_recorded(db: Database, tenant: str, query: Query) -> None:
    write(db, None)
    write(db, tenant)
    recorded, found = export.recorded_heads(db), export.heads(db)
    assert [head.chain for head in recorded] == sorted([tenant, "system"])
    assert {(head.chain, head.seq, head.hash) for head in recorded} == {(one.chain, one.seq, one.hash) for one in found}
    assert sorted(export.chains(db), key=str) == sorted([tenant, None], key=str)
    (stored,) = query("SELECT CAST(max(at) AS text) AS at FROM audit_log WHERE tenant_id = :id", id=tenant)
    (head,) = (one for one in recorded if one.chain == tenant)
    assert head.taken_at == stored["at"][:19].replace(" ", "T") + "Z"
