"""What the commands of migrations say: gaps in the isolation, indexes of vector stores, the next revision."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, text

from headrace.features.retrieval import vector_stores
from headrace.features.retrieval.vector_stores import StoreModel
from headrace.migrations import schema, vector_indexes
from headrace.migrations.__main__ import main, passwords
from headrace.migrations.roles import let_in
from headrace.migrations.schema import head, history, upgrade
from headrace.store.db.database import Database
from headrace.store.db.roles import API, OPERATOR, ROLES, WORKER
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import create_tenant


def test_only_passwords_that_are_given_are_set() -> None:
    settings = Settings(api_database_password="a", worker_database_password="", operator_database_password="c")
    assert passwords(settings) == {API: "a", OPERATOR: "c"}
    assert passwords(Settings(worker_database_password="b")) == {WORKER: "b"}


def test_a_password_is_stored_as_its_verifier_and_a_role_without_one_keeps_its_own(db: Database) -> None:
    def stored() -> dict[str, Any]:
        names = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = ANY(:roles)"
        with db.autocommit() as connection:
            return {row.rolname: row.rolpassword for row in connection.execute(text(names), {"roles": list(ROLES)})}

    let_in(db, {})
    # No comparison with those before: roles are of the whole server, so another test may set their passwords meanwhile.
    assert stored().keys() == set(ROLES)
    assert all(value.startswith("SCRAM-SHA-256$") for value in stored().values())


@pytest.fixture
def store_ids(db: Database) -> Iterator[list[str]]:
    """Ids of stores: of four passages, of three, with vectors that are too long, and a deleted one."""
    tenant = create_tenant(db, "acme")
    stores = [vector_stores.create(db, tenant, StoreModel("m", 1, width)).id for width in (4, 4, 2001, 4)]
    with db.begin() as connection:
        connection.execute(text("INSERT INTO blobs (digest, num_bytes) VALUES ('d', 1)"))
        connection.execute(
            text(
                "INSERT INTO files (id, tenant_id, digest, num_bytes, filename, purpose) "
                "VALUES ('file_1', :tenant, 'd', 1, 'a', 'assistants')"
            ),
            {"tenant": tenant},
        )
        for store_id, num in zip(stores, (4, 3, 9, 9), strict=True):
            connection.execute(
                text(
                    "INSERT INTO vector_store_files (store_id, file_id, tenant_id, ticket, attributes, chunk_tokens, "
                    "overlap_tokens, num_passages) VALUES (:id, 'file_1', :tenant, :id, '{}', 1, 0, :num)"
                ),
                {"id": store_id, "tenant": tenant, "num": num},
            )
    vector_stores.delete(db, tenant, stores[3], actor="tests")
    yield stores
    vector_indexes.refresh(db, fewest=10**9)


def test_large_stores_that_are_there_get_an_index_and_small_ones_lose_it(db: Database, store_ids: list[str]) -> None:
    large, small, *_ = store_ids
    assert vector_indexes.refresh(db, fewest=4) == [f"built hnsw_{large}"]
    assert vector_indexes.refresh(db, fewest=4) == [], "once"
    built = vector_indexes.refresh(db, fewest=3)
    assert built == [f"built hnsw_{small}"], "the other one stays"
    assert vector_indexes.refresh(db, fewest=4) == [f"dropped hnsw_{small}"]
    with db.autocommit() as connection:
        found = connection.execute(text("SELECT indexdef FROM pg_indexes WHERE indexname LIKE 'hnsw%'")).scalar_one()
    assert re.search(r"USING hnsw \(\(\(embedding\)::vector\(4\)\) vector_cosine_ops\)", found)
    assert f"store_id)::text = '{large}'" in found
    assert (vector_indexes.FEWEST_PASSAGES, vector_indexes.MOST_NUMBERS) == (5000, 2000)


def test_without_the_extension_it_says_so(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_indexes, "HAS_EXTENSION", text("SELECT false"))
    (line,) = vector_indexes.refresh(db)
    assert ("pgvector" in line, "docs/retrieval.md" in line) == (True, True)


def test_the_commands_say_what_they_found(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    for arguments, named in ((["check"], "headrace.store.schema"), (["vectors"], "index")):
        assert main(arguments) == 0
        assert named in capsys.readouterr().out
    lines = history(db)
    assert lines[0].startswith("0100  applied  ")
    assert lines[-1].startswith(f"{head()}  applied  ")
    assert len(list(Path("migrations/versions").glob(f"{head()}_*.py"))) == 1


def test_a_revision_waits_a_second_for_locks_and_has_time_for_the_rest(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")

    def shown(connection: Connection) -> list[str]:
        return [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]

    seen: list[list[str]] = []
    monkeypatch.setattr(command, "upgrade", lambda config, _: seen.append(shown(config.attributes["connection"])))
    assert upgrade(db) == head()
    assert seen == [["1s", "0", "2min"]]
    with db.connection() as connection:
        assert shown(connection) != seen[0], "the connection is as it was"
        connection.rollback()
    assert (schema.PATIENCE_S, f"{schema.MIGRATION_LOCK:x}") == (120.0, b"migrate!".hex())
