import socket
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import text

from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthenticated
from headrace.store.tenants import api_key_admin
from headrace.store.tenants.api_keys import (
    SCOPES,
    Principal,
    authenticate,
    bootstrap,
    create_key,
    create_tenant,
    find_tenant,
)
from tests.processes import wait_for
from tests.store.making import Query


def test_a_key_authenticates_its_tenant_with_its_scopes(db: Database, tenant: str) -> None:
    plaintext = create_key(db, tenant, "ci", ["jobs:write", "jobs:read"], actor="mia")
    principal = authenticate(db, plaintext)
    assert principal.tenant_id == tenant
    assert principal.scopes == {"jobs:write", "jobs:read"}
    assert plaintext.startswith(f"hr_{principal.key_id.removeprefix('key_')}_")


def test_the_secret_is_not_stored_and_not_on_record(db: Database, tenant: str, query: Query) -> None:
    plaintext = create_key(db, tenant, "ci", ["jobs:read"], actor="mia")
    secret = plaintext.split("_", 2)[2]
    (stored,) = query("SELECT CAST(api_keys AS text) AS row FROM api_keys")
    assert secret not in stored["row"]
    entry = list_entries(db, tenant)[0]
    assert (entry.actor, entry.action, entry.tenant_id) == ("mia", "api_key.created", tenant)
    assert entry.detail == {"name": "ci", "scopes": ["jobs:read"], "models": None, "expires_at": None}
    assert (entry.request_id, (entry.address or "").partition("@")[2]) == (None, socket.gethostname())
    assert secret not in str(entry)


def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(db: Database, tenant: str, query: Query) -> None:
    good, revoked, expired = (create_key(db, tenant, name, ["jobs:read"], actor="t") for name in "abc")
    api_key_admin.revoke(db, tenant, authenticate(db, revoked).key_id, actor="t", grantor=None)
    query("UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE name = 'c'")
    head, key_id, secret = good.split("_", 2)
    wrong = [
        "",
        "hr",
        "hr__",
        "sk-openai-style",
        revoked,
        expired,
        good[:-1],
        good + "x",
        f"{head}_{key_id}_",
        f"{head}_{'0' * 32}_{secret}",
        f"xx_{key_id}_{secret}",
        f"{head}_{key_id}\0_{secret}",
        f"{head}_{key_id}_{secret}\udcff",
        good.upper(),
    ]
    messages = set()
    for plaintext in wrong:
        with pytest.raises(Unauthenticated) as refused:
            authenticate(db, plaintext)
        messages.add((refused.value.code, refused.value.message))
    assert len(messages) == 1
    assert authenticate(db, good).tenant_id == tenant


def test_a_key_expires_by_the_databases_clock(db: Database, tenant: str, query: Query) -> None:
    plaintext = create_key(db, tenant, "short", ["jobs:read"], expires_s=60, actor="t")
    authenticate(db, plaintext)
    query("UPDATE api_keys SET expires_at = expires_at - interval '61 s'")
    with pytest.raises(Unauthenticated):
        authenticate(db, plaintext)


def test_only_its_tenant_revokes_a_key_and_only_once(db: Database, tenant: str, other_tenant: str) -> None:
    plaintext = create_key(db, tenant, "ci", ["jobs:read"], actor="t")
    key_id = authenticate(db, plaintext).key_id
    with pytest.raises(NotFound):
        api_key_admin.revoke(db, other_tenant, key_id, actor="t", grantor=None)
    authenticate(db, plaintext)
    api_key_admin.revoke(db, tenant, key_id, actor="t", grantor=None)
    with pytest.raises(NotFound):
        api_key_admin.revoke(db, tenant, key_id, actor="t", grantor=None)
    assert [entry.action for entry in list_entries(db, tenant)] == [
        "api_key.revoked",
        "api_key.created",
        "tenant.created",
    ]


def test_a_scope_that_is_none_is_refused(db: Database, tenant: str, query: Query) -> None:
    with pytest.raises(InvalidRequest, match="jobs:delete"):
        create_key(db, tenant, "ci", ["jobs:read", "jobs:delete"], actor="t")
    assert query("SELECT id FROM api_keys") == []


def test_its_use_is_noted_once_a_minute(db: Database, tenant: str, query: Query) -> None:
    plaintext, _ = (create_key(db, tenant, name, ["jobs:read"], actor="t") for name in ("ci", "other"))

    def used() -> tuple[object, object]:
        authenticate(db, plaintext)
        ours, other = query(
            "SELECT last_used_at = date_trunc('minute', last_used_at) AS whole, xmin FROM api_keys ORDER BY name"
        )
        assert other["whole"] is None, "it was not used"
        return ours["whole"], ours["xmin"]

    assert used()[0]
    # The minute may end between two calls: the next one is noted.
    query("UPDATE api_keys SET last_used_at = last_used_at + interval '1 minute' WHERE last_used_at IS NOT NULL")
    first = used()
    assert used() == first, "no second write"
    query("UPDATE api_keys SET last_used_at = last_used_at - interval '2 minutes'")
    assert used() != first


def test_two_admins_who_revoke_each_other_leave_one(db: Database, tenant: str, query: Query) -> None:
    ids = [authenticate(db, create_key(db, tenant, name, ["admin"], actor="t")).key_id for name in "ab"]

    def revoke(grantor: str, other: str) -> str:
        try:
            api_key_admin.revoke(db, tenant, other, actor=grantor, grantor=grantor)
        except (Conflict, Unauthenticated) as refused:
            return refused.code
        return "revoked"

    def num_waiting() -> int:
        return int(query("SELECT count(*) AS n FROM pg_locks WHERE NOT granted")[0]["n"])

    with ThreadPoolExecutor(2) as pool:
        with db.begin() as connection:
            connection.execute(text("LOCK api_keys"))
            done = pool.map(revoke, ids, reversed(ids))
            wait_for(lambda: num_waiting() == 2, "both have begun")
        assert sorted(done) == ["invalid_api_key", "revoked"]
    assert sum(key.revoked_at is None for key in api_key_admin.list_keys(db, tenant, limit=None)) == 1


def test_tenants_have_names_of_their_own(db: Database, tenant: str) -> None:
    assert find_tenant(db, "acme") == tenant
    with pytest.raises(InvalidRequest, match="acme"):
        create_tenant(db, "acme")
    with pytest.raises(NotFound):
        find_tenant(db, "nobody")


class TestBootstrap:
    def test_the_first_key_may_do_everything(self, db: Database) -> None:
        plaintext = bootstrap(db)
        assert plaintext is not None
        principal = authenticate(db, plaintext)
        assert principal.scopes == SCOPES
        assert principal.tenant_id == find_tenant(db, "default")

    def test_there_is_no_second_one(self, db: Database, tenant: str) -> None:
        create_key(db, tenant, "ci", ["jobs:read"], actor="t")
        assert bootstrap(db) is None

    def test_a_tenant_that_is_there_is_used(self, db: Database) -> None:
        tenant_id = create_tenant(db, "default")
        plaintext = bootstrap(db)
        assert plaintext is not None
        assert authenticate(db, plaintext).tenant_id == tenant_id

    def test_processes_that_start_together_make_one_key(self, db: Database, query: Query) -> None:
        barrier = Barrier(6)

        def race(_: int) -> str | None:
            barrier.wait(10)
            return bootstrap(db)

        with ThreadPoolExecutor(6) as pool:
            keys = [key for key in pool.map(race, range(6), timeout=30) if key is not None]
        assert len(keys) == 1
        assert query("SELECT count(*) AS n FROM api_keys") == [{"n": 1}]


@pytest.mark.parametrize("name", ["tiny-large", "tin", "Tiny", "tinier@1"])
def test_a_key_for_a_model_is_none_for_another_whose_name_begins_alike(name: str) -> None:
    principal = Principal("ten_1", "key_1", frozenset({"jobs:write"}), frozenset({"tiny"}))
    for own in ("tiny", "tiny@3", "tiny:adapter"):
        principal.check_model(own)
    with pytest.raises(Forbidden, match=f"model '{name}'"):
        principal.check_model(name)
