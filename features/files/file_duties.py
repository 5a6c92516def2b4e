"""The duties of the leading API process for files: expired ones are deleted, contents that no row names any more, and
states of attempts whose job runs no more.

They run here and not in the dispatcher, because only the API has the storage, and the rights to it.
"""

from collections.abc import Callable, Sequence

from headrace.features.files import files, uploads
from headrace.features.files.attempt_states import AttemptStates
from headrace.features.files.blob_storage import Blobs
from headrace.store.db.database import Database
from headrace.store.keeper import Duty

EXPIRE_S = 60.0
SWEEP_S = 3600.0

_ROWS = 1000
_LOCK_TIMEOUT_S = 2.0
# The storage may be another machine, and slow.
_BUDGET_S = 300.0


def file_duties(db: Database, blobs: Blobs, states: AttemptStates) -> Sequence[tuple[Duty]]:
    """Return the duties, each a group of its own."""

    def duty(name: str, period_s: float, run: Callable[[], bool | None]) -> tuple[Duty]:
        return (Duty(name, period_s, run, budget_s=_BUDGET_S, lock_timeout_s=_LOCK_TIMEOUT_S),)

    return (
        duty("expire_files", EXPIRE_S, lambda: files.expire(db, _ROWS) >= _ROWS),
        duty("expire_uploads", EXPIRE_S, lambda: uploads.expire(db, _ROWS) >= _ROWS),
        duty("remove_contents", EXPIRE_S, lambda: files.remove_unreferenced(db, blobs) > 0),
        duty("remove_states", EXPIRE_S, lambda: states.remove_ended(db)),
        duty("sweep_storage", SWEEP_S, blobs.sweep),
    )
