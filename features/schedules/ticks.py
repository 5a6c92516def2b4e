"""When a schedule runs: its line of cron in its zone, and what follows from ticks that were missed. No I/O.

A time of day that a change to summer time leaves out runs right after the gap; one that comes twice runs once.
Lines with ``*`` in hours follow real time, as in Debian's cron.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from headrace.store.errors import InvalidRequest

LATE = timedelta(seconds=60)
"""A tick that is older was missed: nothing ran schedules then."""

SHORTEST = timedelta(minutes=1)
# A line such as the 30th of February has no tick.
_LONGEST_AHEAD = timedelta(days=366 * 8)
_MOST_SKIPPED = 100_000


class Missed(StrEnum):
    """What happens to ticks that nothing ran, because the server was away or the schedule waited for an earlier run."""

    SKIP = "skip"
    LAST = "last"
    ALL = "all"


def check(cron: str, zone: str) -> None:
    """Raise InvalidRequest for a line or a zone that is none."""
    if zone.startswith(("/", ".")):
        raise InvalidRequest(f"there is no time zone {zone[:60]!r}", param="zone")
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        raise InvalidRequest(
            f"there is no time zone {zone[:60]!r}: take a name such as Europe/Zurich", param="zone"
        ) from None
    if len(cron.split()) != 5:
        raise InvalidRequest("a line of cron has five fields: minute, hour, day, month, weekday", param="cron")
    try:
        next(_ticks(cron, zone, datetime.now(UTC)))
    except CronSimError as error:
        raise InvalidRequest(f"not a line of cron: {error}", param="cron") from None
    except StopIteration:
        raise InvalidRequest("this line of cron has no time at all", param="cron") from None


def following(cron: str, zone: str, after: datetime) -> datetime | None:
    """Return the next tick after a time, in UTC; None if there is none in years."""
    return next(_ticks(cron, zone, after), None)


def _ticks(cron: str, zone: str, after: datetime) -> Iterator[datetime]:
    """Yield ticks after a time."""
    for tick in CronSim(cron, after.astimezone(ZoneInfo(zone))):
        found = tick.astimezone(UTC)
        if found - after > _LONGEST_AHEAD:
            return
        yield found


def due_tick(cron: str, zone: str, missed: Missed, tick: datetime, now: datetime) -> tuple[datetime, int, bool]:
    """Return the tick to decide on now, how many were skipped before it, and whether it has a run.

    ``tick``: the earliest that has not been decided on, which has come.
    """
    if missed is Missed.ALL:
        return tick, 0, True
    skipped = 0
    for later in islice(_ticks(cron, zone, tick), _MOST_SKIPPED):
        if later > now:
            break
        tick, skipped = later, skipped + 1
    return tick, skipped, missed is Missed.LAST or now - tick <= LATE
