"""Prompt templates: each has its own versions, each tenant its own prompts."""

import pytest

from store.db.database import Database
from store.errors import NotFound
from store.registry.prompt_templates import add_version, create, get, list_prompts, list_versions


def test_versions_and_pages_are_a_prompts_and_a_tenants_own(db: Database, tenant: str, other_tenant: str) -> None:
    first, second = (create(db, tenant, name=name, template={"instructions": name}, actor="t") for name in "ab")
    foreign = create(db, other_tenant, name="c", template={"instructions": "c"}, actor="t")
    newest = add_version(db, tenant, first.id, template={"instructions": "a2"}, actor="t")
    assert (newest.id, newest.name, newest.version) == (first.id, "a", 2)
    assert list_versions(db, tenant, first.id) == [first, newest]
    assert list_versions(db, tenant, second.id) == [second]
    assert (get(db, tenant, first.id), get(db, tenant, first.id, 1)) == (newest, first)
    with pytest.raises(NotFound, match="with a version or alias 2"):
        get(db, tenant, second.id, 2)
    assert list_prompts(db, tenant, limit=9) == [second, newest]
    assert list_prompts(db, tenant, limit=1) == [second]
    assert list_prompts(db, tenant, limit=9, after=second.id) == [newest]
    assert list_prompts(db, other_tenant, limit=9) == [foreign]
    for touch in (
        lambda: get(db, other_tenant, first.id),
        lambda: list_versions(db, other_tenant, first.id),
        lambda: add_version(db, other_tenant, first.id, template={}, actor="eve"),
    ):
        with pytest.raises(NotFound):
            touch()
