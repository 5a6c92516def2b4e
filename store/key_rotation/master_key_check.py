"""Whether the master keys are those that were seen here before: another key under a known id opens nothing.

Said when a process starts, and not when it first meets a value that does not open. ``store.encryption.vault`` makes the
check values, which are as good as random to whoever has not the key.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, text

from store.db.database import Database
from store.encryption.vault import Vault
from store.errors import NotFound, SettingsError

_NOTE = text("INSERT INTO encryption_keys (id, check_value) VALUES (:id, :check_value) ON CONFLICT (id) DO NOTHING")
_IDS = text("SELECT id FROM encryption_keys ORDER BY id")
_KNOWN = text("SELECT id, check_value FROM encryption_keys WHERE id = ANY(CAST(:ids AS text[]))")


def check_keys(db: Database, vault: Vault) -> None:
    """Note the keys that are new here.

    Raises SettingsError for one whose id is known with another key, and if there is none although others were given
    before: what this process stores would lie in the clear beside what is sealed.
    """
    checks = vault.checks()
    with db.begin() as connection:
        if not checks:
            if used := connection.execute(_IDS).scalars().all():
                raise _none_given(used)
            return
        known = _known(connection, checks)
        if known.keys() < checks.keys():
            connection.execute(_NOTE, [{"id": key_id, "check_value": check} for key_id, check in checks.items()])
            known = _known(connection, checks)
        # Within the transaction: who is refused notes nothing.
        for key_id, check in known.items():
            if check != checks[key_id]:
                raise _another(key_id)


def _known(connection: Connection, checks: Mapping[str, str]) -> dict[str, str]:
    return {row.id: row.check_value for row in connection.execute(_KNOWN, {"ids": list(checks)})}


def _none_given(used: Sequence[str]) -> SettingsError:
    forgotten = " and ".join(f"`headrace encryption forget {key_id}`" for key_id in used)
    return SettingsError(
        f"no encryption key was given, and what is stored here is sealed with {', '.join(map(repr, used))}: give the "
        "keys that the other processes have by HEADRACE_ENCRYPTION_KEYS; if nothing is to be sealed any more, "
        f"{forgotten}"
    )


def _another(key_id: str) -> SettingsError:
    return SettingsError(
        f"the encryption key {key_id!r} is another than the one of this id that was given before: give that one, or "
        f"this one under an id of its own; if nothing needs the one before, `headrace encryption forget {key_id}`"
    )


def forget_key(db: Database, key_id: str) -> None:
    """Let the next process that starts say which key has this id. Raises NotFound."""
    with db.begin() as connection:
        if not connection.execute(text("DELETE FROM encryption_keys WHERE id = :id"), {"id": key_id}).rowcount:
            raise NotFound(f"no encryption key {key_id!r} was given before")
