"""The operator's cheap hours, and when work that asks for them starts.

It is decided once, at acceptance, and becomes an ordinary ``start_after``: nothing reads the hours afterwards.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo

from headrace.store.errors import InvalidRequest, SettingsError
from headrace.store.jobs.jobs import NewJob
from headrace.store.payloads.job_payload import CHEAP, JobTerms
from headrace.store.schema.job_states import UNSERVED_QUEUE

RESERVE: float = 0.25
"""The share of the time to the deadline that is kept for the wait in the queue and the run itself.

The wait that is measured now is that of the expensive hours, so it says nothing about the time of the start.
"""

_DAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_WINDOW = re.compile(r"(?:([A-Z]{3})(?:-([A-Z]{3}))? )?(\d\d:\d\d)-(\d\d:\d\d) (\S+)")


@dataclass(frozen=True, slots=True)
class Window:
    """Hours of each of these ``days`` (0 is Monday), which end on the next day if ``end`` is not after ``begin``."""

    days: frozenset[int]
    begin: time
    end: time
    zone: ZoneInfo

    def around(self, now: datetime) -> list[tuple[datetime, datetime]]:
        """Return begin and end, in UTC, of each time that it opens from a day ago to a week ahead."""
        today = now.astimezone(self.zone).date()
        found = []
        for day in (today + timedelta(days=number) for number in range(-1, 9)):
            if day.weekday() in self.days:
                last = day if self.begin < self.end else day + timedelta(days=1)
                begin, end = (datetime.combine(*at, self.zone) for at in ((day, self.begin), (last, self.end)))
                found.append((begin.astimezone(UTC), end.astimezone(UTC)))
        return found


@dataclass(frozen=True, slots=True)
class CheapHours:
    """All windows of HEADRACE_CHEAP_HOURS; none: the operator has set none."""

    windows: tuple[Window, ...]

    def start(self, now: datetime, deadline_s: float | None) -> datetime | None:
        """Return when work that comes now starts, in UTC; None: at once.

        At once, if the hours are cheap now, or if the next ones come after the time that its deadline leaves.
        ``deadline_s`` counts from now; None: whatever the time, it waits. Raises InvalidRequest without windows.
        """
        if not self.windows:
            raise InvalidRequest(
                "this server has no cheap hours: leave `start_after` out, or ask the operator to set"
                " HEADRACE_CHEAP_HOURS",
                param="start_after",
            )
        openings = [one for window in self.windows for one in window.around(now) if one[1] > now]
        opens = min(begin for begin, _ in openings)
        is_forced = deadline_s is not None and opens > now + timedelta(seconds=deadline_s * (1 - RESERVE))
        return None if opens <= now or is_forced else opens

    def place(self, job: NewJob, terms: JobTerms) -> NewJob:
        """Return the job with the start that its request asks for. A deadline that it sets counts from now."""
        if terms.start_after != CHEAP:
            return job
        now = datetime.now(UTC)
        start = self.start(now, None if terms.deadline_ms is None else terms.deadline_ms / 1000)
        if start is None:
            return job
        wait_s = 0.0 if terms.deadline_ms is None else (start - now).total_seconds()
        return replace(job, queue=UNSERVED_QUEUE, start_after=start, deadline_s=job.deadline_s - wait_s)


@cache
def read_hours(entries: tuple[str, ...]) -> CheapHours:
    """Return the windows of the setting. Raises SettingsError with a sentence."""
    return CheapHours(tuple(_window(entry) for entry in entries))


def _window(entry: str) -> Window:
    found = _WINDOW.fullmatch(entry)
    try:
        if found is None:
            raise ValueError("write HH:MM-HH:MM ZONE, or MON-FRI HH:MM-HH:MM ZONE")
        first, last, begin, end, zone = found.groups()
        return Window(_days(first, last), time.fromisoformat(begin), _end(end), ZoneInfo(zone))
    except (KeyError, ValueError, OSError) as error:
        raise SettingsError(f"HEADRACE_CHEAP_HOURS: {entry!r}: {str(error).strip(chr(39))}") from None


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    for day in (first, last or first):
        if day not in _DAYS:
            raise ValueError(f"no day {day}: take {', '.join(_DAYS)}")
    begin = _DAYS.index(first)
    return frozenset((begin + number) % 7 for number in range((_DAYS.index(last or first) - begin) % 7 + 1))


def _end(given: str) -> time:
    """Return the end; ``24:00`` is 0:00 of the next day."""
    return time.fromisoformat("00:00" if given == "24:00" else given)
