"""Tenants that are disabled and enabled beside others."""

from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.tenants import api_key_admin, tenants
from headrace.store.tenants.api_keys import authenticate, create_key
from tests.store.making import Query


def test_a_tenant_is_disabled_and_enabled_alone_and_it_is_said_once(
    db: Database, tenant: str, other_tenant: str, query: Query
) -> None:
    kept, revoked, *_ = (create_key(db, tenant, name, ["jobs:read"], actor="t") for name in ("a", "b", "c", "d"))
    create_key(db, tenant, "e", ["jobs:read"], actor="t", expires_s=3600)
    api_key_admin.revoke(db, tenant, authenticate(db, revoked).key_id, actor="t", grantor=None)
    query("UPDATE api_keys SET expires_at = now() WHERE name = 'c'")

    def listed() -> list[tuple[str, bool, int]]:
        return [(one.name, one.disabled_at is not None, one.num_keys) for one in tenants.list_tenants(db)]

    for disabled in (True, False):
        for _ in range(2):
            tenants.set_disabled(db, "acme", disabled=disabled, actor="t")
        assert listed() == [("acme", disabled, 3), ("globex", False, 0)], "keys in force"
    assert [entry.action for entry in list_entries(db, tenant)[:2]] == ["tenant.enabled", "tenant.disabled"]
    assert list_entries(db, tenant)[2].action == "api_key.revoked"
    assert authenticate(db, kept).tenant_id == tenant
    assert [entry.action for entry in list_entries(db, other_tenant)] == ["tenant.created"]
