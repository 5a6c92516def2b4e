"""``headrace keys`` and ``headrace tenants``, run in this process. ``test_main`` runs other verbs in a subprocess."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text
from typer.testing import CliRunner

from headrace.cli.tree import app
from headrace.store.audit_log import list_entries
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, Forbidden, HeadraceError, InvalidRequest, NotFound, Unauthenticated
from headrace.store.redis.key_notices import KEYS_CHANNEL
from headrace.store.registry import versions
from headrace.store.registry.models import register_version
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import SCOPES, authenticate, create_key, find_tenant

Verb = Callable[..., str]


@pytest.fixture
def verb(settings: Settings, tmp_path: Path, db: Database) -> Verb:
    """Run ``headrace`` with these arguments; return its output, or raise its error line."""
    env = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "HEADRACE_HOME": str(tmp_path)}

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, list(words), env=env)
        if done.exception is not None:
            raise done.exception
        return done.stdout

    return run


def test_keys_are_made_listed_rotated_and_ended(verb: Verb, db: Database) -> None:
    key = verb("keys", "create", "ci", "--scope", "jobs:read", "--days", "1").strip()
    assert authenticate(db, key).scopes == {"jobs:read"}
    everything = verb("keys", "create", "small", "--model", "tiny", "--model", "big").strip()
    assert (authenticate(db, everything).scopes, authenticate(db, everything).models) == (SCOPES, {"tiny", "big"})
    rotated = verb("keys", "rotate", key, "--overlap-hours", "1").strip()
    assert authenticate(db, rotated).scopes == authenticate(db, key).scopes
    lines = verb("keys", "list").splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["ci", "small", "ci"]
    assert lines[1].split()[2:5] == ["all", "big,", "tiny"]
    assert f"replaced by {authenticate(db, rotated).key_id}" in lines[2]
    # The secret may have an underscore of its own.
    assert not any(each.split("_", 2)[2] in "".join(lines) for each in (key, rotated, everything))
    assert verb("keys", "revoke", key) == f"{'_'.join(['key', key.split('_')[1]])} revoked\n"
    with db.begin() as connection:
        connection.execute(text("UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE name = 'small'"))
    in_force, ended, revoked = verb("keys", "list").splitlines()[1:]
    assert " in force" in in_force
    assert ended.rstrip().endswith("expired")
    assert " revoked, replaced by " in revoked
    for words, refused, said in (
        (("keys", "revoke", key), NotFound, "in force"),
        (("keys", "create", "x", "--scope", "everything"), InvalidRequest, "everything"),
        (("keys", "create", "x", "--model", "tiny@1"), InvalidRequest, "'tiny@1'"),
        (("keys", "create", "x", "--tenant", "acme"), NotFound, "'acme'"),
    ):
        with pytest.raises(HeadraceError, match=said) as raised:
            verb(*words)
        assert raised.type is refused


def test_a_key_is_ended_by_whoever_knows_only_the_key(verb: Verb, db: Database) -> None:
    tenant_id = verb("tenants", "create", "acme").strip()
    key = verb("keys", "create", "leaked", "--tenant", "acme").strip()
    successor = verb("keys", "rotate", key).strip()
    assert authenticate(db, successor).tenant_id == tenant_id
    verb("keys", "revoke", key)
    with pytest.raises(Unauthenticated):
        authenticate(db, key)
    assert list_entries(db, tenant_id)[0].action == "api_key.revoked"
    with pytest.raises(NotFound, match="no API key key_nosuch"):
        verb("keys", "revoke", "key_nosuch")


def test_the_json_of_keys_is_that_of_the_api(verb: Verb, db: Database, redis_client: redis.Redis) -> None:
    tenant_id = verb("tenants", "create", "acme").strip()
    verb("keys", "create", "other")
    words = ("--tenant", "acme", "--scope", "jobs:write", "--scope", "jobs:read", "--model", "tiny", "--model", "big")
    made = json.loads(verb("keys", "create", "ci", *words, "--days", "2", "--json"))
    assert authenticate(db, made["value"]).key_id == made["id"]
    assert made == {
        "id": made["id"],
        "name": "ci",
        "scopes": ["jobs:read", "jobs:write"],
        "models": ["big", "tiny"],
        "created_at": made["created_at"],
        "expires_at": made["created_at"] + 2 * 86_400,
        "last_used_at": None,
        "revoked_at": None,
        "replaced_by": None,
        "value": made["value"],
    }
    with redis_client.pubsub(ignore_subscribe_messages=True) as told:
        told.subscribe(KEYS_CHANNEL)
        told.get_message(timeout=60)
        kept = json.loads(verb("keys", "rotate", made["id"], "--json"))
        assert kept["expires_at"] == made["expires_at"], "without --days the end stays"
        message = told.get_message(timeout=60)
        assert message is not None
        assert message["data"].decode() == made["id"]
        longer = json.loads(verb("keys", "rotate", kept["id"], "--overlap-hours", "2", "--days", "9", "--json"))
        told.get_message(timeout=60)
        assert longer["expires_at"] == longer["created_at"] + 9 * 86_400
        revoked = json.loads(verb("keys", "revoke", longer["value"], "--json"))
        assert revoked == {"id": longer["id"], "revoked": True}
        message = told.get_message(timeout=60)
        assert message is not None
        assert message["data"].decode() == longer["id"]
    newest, middle, oldest = json.loads(verb("keys", "list", "--tenant", "acme", "--json"))
    assert [key["id"] for key in (newest, middle, oldest)] == [longer["id"], kept["id"], made["id"]]
    assert (newest["revoked_at"] is None, middle["replaced_by"]) == (False, newest["id"])
    assert middle["expires_at"] == longer["created_at"] + 2 * 3600
    assert oldest["expires_at"] == kept["created_at"] + 24 * 3600, "the overlap of a rotation is a day"
    listed = {one["name"]: one for one in json.loads(verb("tenants", "list", "--json"))}
    assert listed["acme"] == {
        "id": tenant_id,
        "name": "acme",
        "created_at": listed["acme"]["created_at"],
        "keys_in_force": 2,
        "disabled_at": None,
    }
    assert json.loads(verb("tenants", "disable", "acme", "--json")) == {
        "id": tenant_id,
        "name": "acme",
        "disabled": True,
    }
    assert json.loads(verb("tenants", "rename", "acme", "new", "--json")) == {"id": tenant_id, "name": "new"}
    listed = {one["name"]: one for one in json.loads(verb("tenants", "list", "--json"))}
    assert listed["new"]["disabled_at"] >= listed["new"]["created_at"]


def test_the_operator_may_end_the_last_admin(verb: Verb, db: Database) -> None:
    key = verb("keys", "create", "admin").strip()
    verb("keys", "revoke", key)
    assert [entry.actor for entry in list_entries(db, find_tenant(db, "default"))] == ["headrace keys"] * 3


def test_tenants_are_made_renamed_and_disabled(verb: Verb, db: Database, redis_client: redis.Redis) -> None:
    tenant_id = verb("tenants", "create", "acme").strip()
    key = create_key(db, tenant_id, "ci", ["jobs:read"], actor="tests")
    verb("tenants", "create", "globex")
    assert "acme ltd" in verb("tenants", "rename", "acme", "acme ltd")
    for words, said in (
        (("create", "globex"), "'globex' already"),
        (("rename", "acme ltd", "globex"), "'globex' already"),
        (("rename", "acme ltd", " "), "printable"),
        (("disable", "acme"), "'acme'"),
    ):
        with pytest.raises(HeadraceError, match=said):
            verb("tenants", *words)
    with redis_client.pubsub(ignore_subscribe_messages=True) as told:
        told.subscribe(KEYS_CHANNEL)
        told.get_message(timeout=60)
        assert verb("tenants", "disable", "acme ltd") == "acme ltd disabled\n"
        message = told.get_message(timeout=60)
        assert message is not None
        assert message["data"].decode() == tenant_id
    with pytest.raises(Forbidden, match="disabled"):
        authenticate(db, key)
    shown = verb("tenants", "list").splitlines()[1:]
    assert [line.split()[-3:-2] == ["1"] for line in shown] == [True, False], "keys in force; disabled on such a day"
    assert verb("tenants", "enable", "acme ltd") == "acme ltd enabled\n"
    assert authenticate(db, key).tenant_id == tenant_id
    done = [(entry.action, entry.actor) for entry in list_entries(db, tenant_id) if entry.actor != "tests"]
    names = ["tenant.enabled", "tenant.disabled", "tenant.renamed", "tenant.created"]
    assert done == [(name, "headrace tenants") for name in names]


def test_a_version_is_priced_and_deleted_by_its_number(verb: Verb, db: Database) -> None:
    for digest in "012":
        about: dict[str, Any] = {"dtype": "none", "context_window": 8, "files": {}, "actor": "tests"}
        register_version(db, model="tiny", runner="fake", source="fake", digest=digest * 64, **about)
    price = ("models", "price", "tiny@2", "--input", "0.15", "--output", "0.6", "--json")
    priced = {"model": "tiny", "version": 2, "input": "0.15", "output": "0.6"}
    assert json.loads(verb(*price)) == priced | {"cached_input": "0.15"}
    assert json.loads(verb(*price, "--cached-input", "0.05")) == priced | {"cached_input": "0.05"}
    versions.retire(db, "tiny", 2, "tests")
    for words, refused, said in (
        (("tiny@3",), Conflict, "tiny@3"),
        (("tiny@4",), NotFound, "'tiny@4'"),
    ):
        with pytest.raises(refused, match=said):
            verb("models", "delete", *words)
    assert json.loads(verb("models", "delete", "tiny@2", "--json")) == {"model": "tiny", "version": 2, "deleted": True}
    assert [one.version for one in versions.list_versions(db, "tiny")] == [3, 1]
    with db.begin() as connection:
        deleted = connection.execute(text("SELECT actor, resource FROM audit_log WHERE action = 'model.deleted'")).all()
    assert deleted == [("headrace models delete", "tiny@2")]
