"""What a feature writes in the transaction in which a worker ends jobs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from sqlalchemy import Connection

from headrace.assembly import parts
from headrace.store.jobs.finish_rows import Finish
from headrace.store.seal import Seal


@dataclass(frozen=True, slots=True)
class EndPart:
    """The ``PART`` of a feature's file ``ended``.

    ``mark``: the field of ``Finish`` that is true for an end which concerns the feature. ``write``: gets those ends
    that have ended their jobs; it must not wait for a row that another transaction may hold.
    """

    mark: str
    write: Callable[[Connection, Sequence[Finish], Seal], None]

    def concerns(self, finish: Finish) -> bool:
        """Return True if the feature has something to write for this end."""
        return bool(getattr(finish, self.mark))


@cache
def end_parts() -> list[EndPart]:
    """Return the parts of all features."""
    return parts("ended", EndPart)
