"""Inputs of ``headrace up --model``, and its advice for unsupported ones."""

import shutil
from pathlib import Path

import pytest

from headrace.cli.local import prepare, stack
from headrace.cli.local.home import Home
from headrace.cli.local.prepare import CATALOGUE, ensure_key, ensure_model
from headrace.models.catalog import CATALOG, register
from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings, child_environment
from headrace.store.tenants.api_key_admin import revoke
from headrace.store.tenants.api_keys import DEFAULT_TENANT, SCOPES, authenticate, find_tenant
from tests.models import tiny


def ensure(db: Database, settings: Settings, folder: Path, asked: str) -> ModelVersion:
    env = child_environment({"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url})
    with (home := Home(folder)).locked():
        return ensure_model(db, asked, home, env, lambda _sentence: None)


def test_the_catalogue_is_the_one_that_is_fetched() -> None:
    assert set(CATALOGUE) == set(CATALOG)


def test_a_folder_is_registered_under_its_name_and_a_registered_name_is_found(
    db: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tiny.save_tokenizer(tiny.save(tiny.build("llama"), tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    found = [ensure(db, settings, tmp_path, asked) for asked in (str(mine), "./mine", "mine", "mine@1")]
    assert {(version.model, version.version, version.source) for version in found} == {("mine", 1, str(mine))}
    # Other files make another version, so the worker gets the version, not only the name.
    (mine / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.5}')
    second = ensure(db, settings, tmp_path, "./mine")
    assert second.version == 2
    assert stack.served_as("./mine", second) == "mine@2"
    assert stack.served_as("mine", found[0]) == "mine"


def test_a_stack_keeps_its_key_while_it_is_valid(db: Database, tmp_path: Path) -> None:
    home = Home(tmp_path)
    first = ensure_key(db, home)
    assert (ensure_key(db, home), home.api_key()) == (first, first)
    tenant_id = find_tenant(db, DEFAULT_TENANT)
    revoke(db, tenant_id, authenticate(db, first).key_id, actor="tests", grantor=None)
    second = ensure_key(db, home)
    home.write_api_key("hr_1_of-another-database")
    third = ensure_key(db, home)
    assert len({first, second, third}) == 3
    for key in (second, third):
        found = authenticate(db, key)
        assert (found.tenant_id, found.scopes) == (tenant_id, SCOPES)
    assert home.api_key() == third


@pytest.mark.parametrize(
    ("is_migrated", "can_log_in", "with_roles", "ran"),
    [
        (True, True, True, []),
        (True, False, False, []),
        (True, False, True, [["roles"]]),
        (False, True, True, [["roles"]]),
        (False, True, False, [[]]),
    ],
)
def test_a_database_is_migrated_once_and_has_roles_if_they_are_used(
    db: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_migrated: bool,
    can_log_in: bool,
    with_roles: bool,
    ran: list[list[str]],
) -> None:
    started: list[list[str]] = []
    said: list[str] = []
    monkeypatch.setattr(prepare, "is_migrated", lambda _: is_migrated)
    monkeypatch.setattr(prepare, "can_log_in", lambda _: can_log_in)
    monkeypatch.setattr(prepare, "run_module", lambda module, words, *_: started.append([module, *words]))
    prepare.migrate(db, Home(tmp_path), {}, said.append, with_roles=with_roles)
    assert started == [["headrace.migrations", *words] for words in ran]
    assert said == ["schema migrated"] * len(ran)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("gpt-9", "hf download ORG/gpt-9"),
        ("org/gpt-9", "hf download org/gpt-9"),
        ("./gpt-9", "no folder ./gpt-9"),
        ("empty", "empty/config.json"),
    ],
)
def test_what_is_no_model_is_told_the_next_step(
    db: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unavailable) as raised:
        ensure(db, settings, tmp_path, asked)
    assert said in raised.value.message


def test_every_name_is_known_before_the_first_model_is_fetched(settings: Settings, tmp_path: Path) -> None:
    home = tmp_path / "home"
    told: list[str] = []
    with (
        pytest.raises(Unavailable, match="'gpt-9'"),
        stack.running_stack(settings.model_copy(update={"home": home}), ["smollm2", "gpt-9"], told.append),
    ):
        pass
    assert not (home / "models").exists()


def test_a_registered_model_whose_folder_is_gone_is_said(db: Database, settings: Settings, tmp_path: Path) -> None:
    moved = tiny.save_tokenizer(tiny.save(tiny.build("llama"), tmp_path / "moved"))
    register(db, "mine", str(moved), "auto", actor="tests")
    shutil.rmtree(moved)
    with pytest.raises(Unavailable, match=f"mine .*{moved}"):
        ensure(db, settings, tmp_path, "mine")


def test_an_installation_without_the_extra_is_said_before_anything_is_started(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "LOCAL_MODULES", ("uvicorn", "not_installed"))
    told: list[str] = []
    with (
        pytest.raises(Unavailable, match=r"`local`.* not_installed"),
        stack.running_stack(settings.model_copy(update={"home": tmp_path / "home"}), ["fake"], told.append),
    ):
        pass
    assert told == []
    assert not (tmp_path / "home").exists()
