"""The seal of a process: that of a feature, by its settings, or the plain one."""

from collections.abc import Callable
from dataclasses import dataclass

from headrace.assembly import parts
from headrace.store.db.database import Database
from headrace.store.errors import SettingsError
from headrace.store.seal import PLAIN, Seal
from headrace.store.settings import Settings


@dataclass(frozen=True, slots=True)
class SealPart:
    """The ``PART`` of a feature's file ``seal``.

    ``open`` returns the seal for the settings, or None if they do not ask for one; it raises SettingsError. ``check``
    raises SettingsError if a process with the seal of this database must not start.
    """

    open: Callable[[Settings], Seal | None]
    check: Callable[[Database], None]


def open_seal(settings: Settings) -> Seal:
    """Return the seal for the settings. Raises SettingsError for malformed keys, and for keys that no part takes."""
    for part in parts("seal", SealPart):
        if (seal := part.open(settings)) is not None:
            return seal
    if settings.encryption_keys or settings.encryption_key_file is not None:
        raise SettingsError("HEADRACE_ENCRYPTION_KEYS: this installation has no encryption")
    return PLAIN


def check_seal(db: Database) -> None:
    """Raise SettingsError if the database has contents that were stored with other keys than those of its seal."""
    for part in parts("seal", SealPart):
        part.check(db)
