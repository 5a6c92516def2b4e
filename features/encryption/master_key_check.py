"""Check at process start that each master key id still names the same key.

Another key under a known id could decrypt nothing, and a process should fail at its start rather than at the first
value that it cannot decrypt. ``Seal.checks`` computes the check values. They reveal nothing about the keys.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, text

from headrace.store.db.database import Database
from headrace.store.errors import NotFound, SettingsError

# Records a key that is new.
_ADD = text("INSERT INTO encryption_keys (id, check_value) VALUES (:id, :check_value) ON CONFLICT (id) DO NOTHING")
# Ids of all recorded keys.
_IDS = text("SELECT id FROM encryption_keys ORDER BY id")
# Check values of recorded keys.
_KNOWN = text("SELECT id, check_value FROM encryption_keys WHERE id = ANY(CAST(:ids AS text[]))")


def check_keys(db: Database) -> None:
    """Record the check values of new keys.

    Raises SettingsError if a known id has another key, or if no key is set although keys were used before: this process
    would then store values in plaintext beside encrypted ones.
    """
    checks = db.seal.checks()
    with db.begin() as connection:
        if not checks:
            if used := connection.execute(_IDS).scalars().all():
                raise _none_given(used)
            return
        known = _known(connection, checks)
        if known.keys() < checks.keys():
            connection.execute(_ADD, [{"id": key_id, "check_value": check} for key_id, check in checks.items()])
            known = _known(connection, checks)
        # In the transaction, so that a process that is refused records nothing.
        for key_id, check in known.items():
            if check != checks[key_id]:
                raise _other_key(key_id)


def _known(connection: Connection, checks: Mapping[str, str]) -> dict[str, str]:
    return {row.id: row.check_value for row in connection.execute(_KNOWN, {"ids": list(checks)})}


def _none_given(used: Sequence[str]) -> SettingsError:
    forgotten = " and ".join(f"`headrace encryption forget {key_id}`" for key_id in used)
    return SettingsError(
        f"no encryption key is set, but the database has values sealed with {', '.join(map(repr, used))}: set "
        "HEADRACE_ENCRYPTION_KEYS to the keys of the other processes; to stop encrypting, run "
        f"{forgotten}"
    )


def _other_key(key_id: str) -> SettingsError:
    return SettingsError(
        f"the encryption key {key_id!r} is another than the one of this id that was given before: set that one, or "
        f"give the new key another id; if no value needs the old key, run `headrace encryption forget {key_id}`"
    )


def forget_key(db: Database, key_id: str) -> None:
    """Delete the check value of a key id, so that the id can get another key. Raises NotFound."""
    with db.begin() as connection:
        if not connection.execute(text("DELETE FROM encryption_keys WHERE id = :id"), {"id": key_id}).rowcount:
            raise NotFound(f"no encryption key {key_id!r} is recorded")
