"""The types of the store tests' fixtures, and the queue that their jobs are for."""

from collections.abc import Callable
from typing import Any, Protocol

from store.jobs.jobs import NewJob

QUEUE = "tiny@1"


class MakeJob(Protocol):
    """Builds a job to accept; every field can be given."""

    def __call__(self, **changes: Any) -> NewJob: ...


class Query(Protocol):
    """Runs one SQL statement and returns its rows."""

    def __call__(self, statement: str, **values: object) -> list[dict[str, Any]]: ...


AcceptOne = Callable[..., str]
