"""The reports of model hosts in Postgres: which versions have a place, what others may expect, the last swaps.

A host writes its report every second. In the same transaction it asks for the versions that it wants to start, so that
of two hosts only one starts a version.
"""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.db.presence import GONE_AFTER_S
from headrace.store.json_text import dump_json

# The first of the transaction-level advisory locks of hosts: reports are written one after the other.
_REPORT_LOCK = 0x4D6F64656C486F73


class _Reported(BaseModel):
    # A later release may have written more.
    model_config = ConfigDict(extra="ignore", frozen=True)


class PlaceState(StrEnum):
    """The state of a version with a place on a host."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class HostPlace(_Reported):
    """A version with a place on a host: its worker process."""

    queue: str = Field(description="the model version")
    state: PlaceState = Field(description="`starting`: it loads; `serving`; `draining`: it ends its jobs and leaves")
    since: datetime = Field(description="when the state began")
    memory_bytes: int = Field(description="memory that the version is counted with")
    used_bytes: int = Field(0, description="memory that its processes use now")
    pid: int | None = Field(None, description="process id of the worker")


class HostOutlook(_Reported):
    """What a queue without a place may expect of a host.

    ``in_s``: seconds until the host serves it if work waits; None: it will not, and ``text`` says why.
    """

    queue: str = Field(description="the model version")
    in_s: float | None = Field(None, description="seconds until the host serves it if work waits; null: it will not")
    text: str | None = Field(None, description="why the host does not serve it")


class HostEvent(_Reported):
    """Something that a host did or saw, for people."""

    at: datetime
    queue: str = Field(description="the model version")
    kind: Literal["started", "serving", "draining", "ended", "failed"]
    reason: str = Field(description="why")


class HostReport(_Reported):
    """A host as it reports itself."""

    name: str = Field(description="name of the host")
    started_at: datetime = Field(description="when its process started")
    budget_bytes: int = Field(description="memory for its workers")
    places: tuple[HostPlace, ...] = Field(default=(), description="versions with a place, sorted by name")
    outlooks: tuple[HostOutlook, ...] = Field(default=(), description="what other queues may expect")
    num_swaps: int = Field(0, description="versions that gave their place to others since the start")
    asleep: tuple[str, ...] = Field(default=(), description="versions whose inference server sleeps, by name")
    events: tuple[HostEvent, ...] = Field(default=(), description="the last events, newest first")

    @property
    def needed_bytes(self) -> int:
        """The memory that the versions with a place are counted with."""
        return sum(place.memory_bytes for place in self.places)

    @property
    def used_bytes(self) -> int:
        """The memory that the processes of its workers use."""
        return sum(place.used_bytes for place in self.places)


_LOCK = text("SELECT pg_advisory_xact_lock(:key)")

_OTHERS = text("""
SELECT place ->> 'queue' FROM model_hosts CROSS JOIN LATERAL jsonb_array_elements(report -> 'places') AS place
WHERE name <> :name AND seen_at > now() - make_interval(secs => :gone_after_s)
""")

_WRITE = text("""
INSERT INTO model_hosts (name, report) VALUES (:name, CAST(:report AS jsonb))
ON CONFLICT (name) DO UPDATE SET seen_at = now(), report = excluded.report
""")

_FORGET = text("DELETE FROM model_hosts WHERE seen_at < now() - make_interval(secs => 360 * :gone_after_s)")

_READ = text("""
SELECT report FROM model_hosts WHERE seen_at > now() - make_interval(secs => :gone_after_s) ORDER BY name
""")


def write_report(db: Database, report: HostReport, wanted: Iterable[HostPlace] = ()) -> HostReport:
    """Store the report with those of the ``wanted`` places that no other live host has; return it as stored."""
    with db.begin() as connection:
        connection.execute(_LOCK, {"key": _REPORT_LOCK})
        values = {"name": report.name, "gone_after_s": GONE_AFTER_S}
        taken: Collection[str] = set(connection.execute(_OTHERS, values).scalars())
        granted = tuple(place for place in wanted if place.queue not in taken)
        stored = report.model_copy(update={"places": (*report.places, *granted)})
        connection.execute(_WRITE, {"name": report.name, "report": dump_json(stored.model_dump(mode="json"))})
        connection.execute(_FORGET, {"gone_after_s": GONE_AFTER_S})
    return stored


def last_report(db: Database, name: str) -> HostReport | None:
    """Return the last report of the host, however old; None without one."""
    with db.autocommit() as connection:
        row = connection.execute(text("SELECT report FROM model_hosts WHERE name = :name"), {"name": name})
        found = row.scalar_one_or_none()
    return None if found is None else HostReport.model_validate(found)


def remove_report(db: Database, name: str) -> None:
    """Delete the report: the host ends, and its workers have ended."""
    with db.autocommit() as connection:
        connection.execute(text("DELETE FROM model_hosts WHERE name = :name"), {"name": name})


def read_hosts(db: Database) -> list[HostReport]:
    """Return the reports of the live hosts, by name."""
    with db.autocommit() as connection:
        rows = connection.execute(_READ, {"gone_after_s": GONE_AFTER_S}).scalars().all()
    return [HostReport.model_validate(row) for row in rows]


def outlook_of(hosts: Iterable[HostReport], queue: str) -> HostOutlook | None:
    """Return the best outlook of a queue without a worker: the soonest, else a reason; None if no host knows it."""
    found = [outlook for host in hosts for outlook in host.outlooks if outlook.queue == queue]
    return min(found, key=lambda one: (one.in_s is None, one.in_s or 0.0), default=None)


def now() -> datetime:
    """Return the time of this machine, as reports have it."""
    return datetime.now(UTC)
