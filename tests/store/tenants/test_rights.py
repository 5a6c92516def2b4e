"""What a key may give to another, and what the audit log has of it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headrace.store.audit_log import hash_of, list_entries
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthenticated
from headrace.store.tenants import api_key_admin, tenants
from headrace.store.tenants.api_key_admin import ApiKey, KeyChange, NewKey, covers
from headrace.store.tenants.api_keys import (
    Principal,
    Rights,
    authenticate,
    bootstrap,
    check_rights,
    check_tenant_name,
    create_key,
    create_tenant,
    find_tenant,
    find_tenant_of_key,
    principal_of,
    principal_of_key,
)
from tests.refusals import Naming, refusal
from tests.store.making import Query

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
READ, BOTH, ADMIN = frozenset({"jobs:read"}), frozenset({"jobs:read", "jobs:write"}), frozenset({"admin"})
TINY, TWO = frozenset({"tiny"}), frozenset({"tiny", "large"})


@pytest.mark.parametrize(
    ("holder", "wanted", "is_covered"),
    [
        (Rights(BOTH), Rights(READ), True),
        (Rights(READ), Rights(BOTH), False),
        (Rights(ADMIN), Rights(BOTH), True),
        (Rights(READ), Rights(READ, TINY), True),
        (Rights(READ, TINY), Rights(READ), False),
        (Rights(READ, TWO), Rights(READ, TINY), True),
        (Rights(READ, TINY), Rights(READ, TWO), False),
        (Rights(ADMIN, TINY), Rights(READ, TWO), False),
        (Rights(READ, None, NOW), Rights(READ, None, NOW), True),
        (Rights(READ, None, NOW), Rights(READ, None, NOW + HOUR), False),
        (Rights(READ, None, NOW), Rights(READ), False),
        (Rights(READ), Rights(READ, None, NOW), True),
    ],
)
def test_rights_cover_no_scope_model_or_time_that_they_lack(holder: Rights, wanted: Rights, is_covered: bool) -> None:
    assert covers(holder, wanted) is is_covered


def test_a_key_is_in_force_until_its_end() -> None:
    def key(expires_at: datetime | None, revoked_at: datetime | None = None) -> ApiKey:
        return ApiKey("key_1", "a", Rights(READ, TWO, expires_at), None, NOW, None, revoked_at)

    in_force = [key(end).is_in_force(NOW) for end in (None, NOW + HOUR, NOW, NOW - HOUR)]
    assert in_force == [True, True, False, False]
    assert not key(None, NOW - HOUR).is_in_force(NOW)
    assert key(NOW, NOW - HOUR).audit_fields() == {
        "name": "a",
        "scopes": ["jobs:read"],
        "models": ["large", "tiny"],
        "expires_at": "2026-11-29T12:00:00+00:00",
        "replaced_by": None,
        "revoked_at": "2026-11-29T11:00:00+00:00",
    }


@pytest.mark.parametrize(
    ("rights", "said", "param"),
    [
        (Rights(frozenset()), Naming("scope"), "scopes"),
        (Rights(READ, frozenset()), Naming("`models`"), "models"),
        (
            Rights(READ, frozenset({"tiny", "tiny@3"})),
            Naming("'tiny@3'"),
            "models",
        ),
        (Rights(READ, frozenset({""})), Naming("''"), "models"),
        (
            Rights(frozenset({"z", "a", "admin"})),
            Naming("a, z: ", "admin, audit:read, jobs:read", "usage:read, webhooks:admin"),
            "scopes",
        ),
    ],
)
def test_rights_that_allow_nothing_are_refused(rights: Rights, said: Naming, param: str) -> None:
    assert refusal(lambda: check_rights(rights)) == (InvalidRequest, said, "invalid_value", param)


@pytest.mark.parametrize("name", ["", "x" * 101, " a", "a ", "a\nb", "a\u200bb"])
def test_a_tenants_name_is_read_as_it_is_written(name: str) -> None:
    said = Naming("name", "1 to 100")
    assert refusal(lambda: check_tenant_name(name)) == (InvalidRequest, said, "invalid_value", "name")
    check_tenant_name("x" * 100)


def test_a_model_that_a_key_may_not_use_is_named_with_those_that_it_may() -> None:
    may_not = Naming("'huge@2'", "large, tiny")
    principal = Principal("ten_1", "key_1", READ, TWO)
    assert refusal(lambda: principal.check_model("huge@2")) == (Forbidden, may_not, "model_not_allowed", "model")
    Principal("ten_1", "key_1", READ).check_model("huge@2")


def test_work_of_a_key_goes_on_after_its_end_or_stops_with_it(
    db: Database, tenant: str, other_tenant: str, query: Query
) -> None:
    key = authenticate(db, create_key(db, tenant, "a", ["jobs:read"], models=["tiny"], actor="mia"))
    assert (key.scopes, key.models) == (READ, TINY)
    assert (principal_of(db, tenant, key.key_id), principal_of_key(db, key.key_id)) == (key, key)
    assert refusal(lambda: principal_of(db, other_tenant, key.key_id))[:2] == (NotFound, Naming(key.key_id))
    query("UPDATE api_keys SET expires_at = now()")
    assert principal_of(db, tenant, key.key_id) == key
    gone = refusal(lambda: principal_of_key(db, key.key_id))
    assert gone[:2] == (NotFound, Naming(key.key_id))
    assert find_tenant_of_key(db, key.key_id) == tenant
    assert refusal(lambda: find_tenant_of_key(db, "key_none"))[:2] == (NotFound, Naming("key_none"))
    tenants.set_disabled(db, "acme", disabled=True, actor="mia")
    assert refusal(lambda: principal_of(db, tenant, key.key_id))[:3] == (
        Forbidden,
        Naming("disabled"),
        "tenant_disabled",
    )


def made(db: Database, tenant: str, name: str, scopes: frozenset[str], **changes: Any) -> str:
    grantor = changes.pop("grantor", None)
    return api_key_admin.create(db, tenant, NewKey(name, scopes, **changes), actor="mia", grantor=grantor).key.id


def test_what_a_grantor_may_not_is_said(
    db: Database, tenant: str, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = made(db, tenant, "weak", READ, models=TINY, until=3600)

    def create(scopes: frozenset[str] = READ, **changes: Any) -> Any:
        return refusal(lambda: made(db, tenant, "x", scopes, grantor=weak, **changes))

    assert create(BOTH | {"admin"}) == (
        Forbidden,
        Naming("admin, jobs:write"),
        "insufficient_scope",
        "scopes",
    )
    assert create(models=TWO) == (
        Forbidden,
        Naming("tiny", "`models`"),
        "model_not_allowed",
        "models",
    )
    kind, said, code, param = create(models=TINY)
    assert (kind, code, param) == (Forbidden, "expiry_not_allowed", "expires_at")
    assert said == Naming(" 20", " UTC", "`expires_at`")
    ended = Naming("ended already")
    assert create(models=TINY, until=0) == (InvalidRequest, ended, "invalid_value", "expires_at")
    endless = Naming("cannot last")
    assert create(models=TINY, until=1e300) == (InvalidRequest, endless, "invalid_value", "expires_in_s")
    monkeypatch.setattr(api_key_admin, "MAX_KEYS", 2)
    made(db, tenant, "ended", READ, until=3600)
    query("UPDATE api_keys SET expires_at = now() WHERE name = 'ended'")
    assert made(db, tenant, "second", READ, models=TINY, until=60, grantor=weak)
    assert create(models=TINY, until=60) == (
        Conflict,
        Naming("2 keys"),
        "conflict",
        None,
    )
    assert made(db, tenant, "operators", READ), "the operator may make more"
    api_key_admin.revoke(db, tenant, weak, actor="mia", grantor=None)
    assert create(models=TINY, until=60)[0] is Unauthenticated


def test_changes_of_keys_are_on_record_with_both_states(db: Database, tenant: str, other_tenant: str) -> None:
    made(db, other_tenant, "far", READ)
    key_id = made(db, tenant, "a", READ)
    neighbour = made(db, tenant, "b", READ)
    before = api_key_admin.get_key(db, tenant, key_id)
    change = KeyChange(name="c", scopes=BOTH, models=TINY)
    changed = api_key_admin.update(db, tenant, key_id, change, actor="kai", grantor=None)
    assert (changed.name, changed.rights) == ("c", Rights(BOTH, TINY))
    old, issued = api_key_admin.rotate(db, tenant, key_id, overlap_s=60, actor="kai", grantor=None)
    assert (old.replaced_by, issued.key.name, issued.key.rights) == (issued.key.id, "c", changed.rights)
    assert old.rights.expires_at is not None
    assert refusal(lambda: api_key_admin.rotate(db, tenant, key_id, actor="kai", grantor=None)) == (
        Conflict,
        Naming(key_id, issued.key.id),
        "key_rotated",
        None,
    )
    at_once, _ = api_key_admin.rotate(db, tenant, issued.key.id, overlap_s=0, actor="kai", grantor=None)
    assert (at_once.revoked_at is None, at_once.rights.expires_at) == (False, None)
    gone = refusal(lambda: api_key_admin.revoke(db, tenant, at_once.id, actor="kai", grantor=None))
    assert gone[:2] == (NotFound, Naming(at_once.id, "in force"))
    assert api_key_admin.get_key(db, tenant, neighbour).is_in_force(datetime.now(UTC))
    told = [e for e in reversed(list_entries(db, tenant)) if e.resource == key_id]
    expected = {"scopes": ["jobs:read", "jobs:write"], "models": ["tiny"], "expires_at": None}
    assert [(e.actor, e.action, e.detail) for e in told] == [
        ("mia", "api_key.created", {"name": "a", "scopes": ["jobs:read"], "models": None, "expires_at": None}),
        ("kai", "api_key.updated", {"name": "c", **expected}),
        ("kai", "api_key.rotated", {"replaced_by": issued.key.id, "overlap_s": 60}),
    ]
    states = [hash_of(key.audit_fields()) for key in (before, changed, old)]
    assert [(e.before_hash, e.after_hash) for e in told[1:]] == [(states[0], states[1]), (states[1], states[2])]
    pages = [api_key_admin.list_keys(db, tenant, limit=2)]
    pages.append(api_key_admin.list_keys(db, tenant, limit=2, after=pages[0][-1].id))
    assert [one.name for page in pages for one in page] == ["c", "c", "b", "c"]


def test_tenants_are_renamed_and_named(db: Database, tenant: str, other_tenant: str) -> None:
    assert tenants.rename(db, "acme", "apex", actor="mia") == tenant
    (entry, *_) = list_entries(db, tenant)
    assert (entry.action, entry.resource, entry.detail) == ("tenant.renamed", tenant, {"name": "apex", "was": "acme"})
    assert (entry.before_hash, entry.after_hash) == (hash_of("acme"), hash_of("apex"))
    assert tenants.read_names(db, [tenant]) == {tenant: "apex"}
    assert tenants.read_names(db, []) == {}
    taken = Naming("'globex' already")
    assert refusal(lambda: tenants.rename(db, "apex", "globex", actor="mia")) == (
        InvalidRequest,
        taken,
        "invalid_value",
        "name",
    )
    assert refusal(lambda: create_tenant(db, "globex"))[1] == taken
    for run in (lambda: tenants.rename(db, "acme", "x", actor="mia"), lambda: find_tenant(db, "acme")):
        assert refusal(run) == (NotFound, Naming("'acme'", "`headrace tenants`"), "not_found", "tenant")
    tenants.set_disabled(db, "apex", disabled=True, actor="mia")
    (entry, *_) = list_entries(db, tenant)
    assert (entry.detail, entry.before_hash, entry.after_hash) == (
        {"name": "apex"},
        hash_of({"disabled": False}),
        hash_of({"disabled": True}),
    )
    (first, *_) = list_entries(db, other_tenant)
    assert (first.actor, first.detail, first.after_hash) == ("system", {"name": "globex"}, hash_of("globex"))


def test_a_weak_key_may_rename_a_strong_one_and_change_no_right_of_it(db: Database, tenant: str) -> None:
    made(db, tenant, "admin", frozenset({"admin"}))
    strong, weak = made(db, tenant, "strong", BOTH), made(db, tenant, "weak", READ)

    def change(**fields: Any) -> ApiKey:
        return api_key_admin.update(db, tenant, strong, KeyChange(**fields), actor="mia", grantor=weak)

    assert change(name="renamed").name == "renamed"
    assert change(scopes=BOTH).rights == Rights(BOTH), "they are the same"
    assert refusal(lambda: change(models=TINY))[0] is Forbidden
    assert refusal(lambda: change(name="x", scopes=READ, until=0))[1] == Naming("ended already")
    assert change(scopes=READ, models=TINY, until=60).rights.expires_at is not None
    assert api_key_admin.update(
        db, tenant, strong, KeyChange(models=None, until=None), actor="mia", grantor=None
    ).rights == Rights(READ)


def test_the_first_key_is_the_systems_own(db: Database) -> None:
    plaintext = bootstrap(db)
    assert plaintext is not None
    key = authenticate(db, plaintext)
    told = [(e.actor, e.action, e.detail.get("name")) for e in list_entries(db, key.tenant_id)]
    assert told == [("system", "api_key.created", "bootstrap"), ("system", "tenant.created", "default")]
