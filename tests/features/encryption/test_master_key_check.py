"""A master key that is not the one of its id is refused before it seals anything."""

import pytest

from headrace.features.encryption.master_key_check import check_keys, forget_key
from headrace.features.encryption.master_keys import new_key, parse_keys
from headrace.features.encryption.vault import Vault
from headrace.store.db.database import Database
from headrace.store.errors import NotFound, SettingsError
from headrace.store.seal import PLAIN, Seal
from tests.store.making import Query


def vault(*key_ids: str) -> Vault:
    return Vault(parse_keys(",".join(f"{key_id}:{new_key()}" for key_id in key_ids), "keys"))


def check(db: Database, seal: Seal) -> None:
    db.seal = seal
    check_keys(db)


def test_a_known_id_with_another_key_is_refused_until_it_is_forgotten(db: Database) -> None:
    first = vault("k1", "k2")
    for _ in range(2):
        check(db, first)
    check(db, vault("k3"))
    with pytest.raises(SettingsError, match=r"'k2' .*`headrace encryption forget k2`"):
        check(db, vault("k4", "k2"))
    forget_key(db, "k2")
    check(db, vault("k2"))
    with pytest.raises(SettingsError, match="'k2'"):
        check(db, first)
    with pytest.raises(NotFound):
        forget_key(db, "k9")


def test_who_refuses_notes_nothing(db: Database, query: Query) -> None:
    check(db, vault("k1"))
    with pytest.raises(SettingsError):
        check(db, vault("k0", "k1"))
    assert [row["id"] for row in query("SELECT id FROM encryption_keys ORDER BY id")] == ["k1"]


def test_a_process_without_keys_stores_nothing_beside_what_is_sealed(db: Database) -> None:
    check(db, PLAIN)
    check(db, vault("k1", "k2"))
    with pytest.raises(SettingsError, match=r"'k1', 'k2'.* HEADRACE_ENCRYPTION_KEYS .*encryption forget k2`"):
        check(db, PLAIN)
    forget_key(db, "k1")
    forget_key(db, "k2")
    check(db, PLAIN)


def test_refusals_say_what_to_run(db: Database) -> None:
    check(db, vault("k1", "k2"))
    for refused, said in (
        (
            PLAIN,
            "'k1', 'k2'.*HEADRACE_ENCRYPTION_KEYS.*`headrace encryption forget k1`.*`headrace encryption forget k2`",
        ),
        (
            vault("k1"),
            "'k1' .*`headrace encryption forget k1`",
        ),
    ):
        with pytest.raises(SettingsError, match=said):
            check(db, refused)
    with pytest.raises(NotFound, match="'k9'"):
        forget_key(db, "k9")
