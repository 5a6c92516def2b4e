"""From samples to a judgement: what grew from the second quarter of the time to the last. Pure: data in, data out."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Samples = Sequence[tuple[float, Mapping[str, float]]]
"""(seconds since the start, value by name of the series)."""

BY_DESIGN = {
    "usage_ledger": "a row a job for seven days, for bills",
    "audit_log": "is never deleted",
    "audit_heads": "is never deleted",
}
"""Tables that grow with the number of jobs or of actions, as they should."""

# Allowed growth of a series: a part of its mean, and in its own unit.
_PART = 0.10
_ALLOWED = {
    "memory MiB": 8.0,
    "descriptors": 8.0,
    "threads": 22.0,  # a dispatcher that becomes the leader has 18 more
    "table KiB": 1024.0,
    "index KiB": 1024.0,
    "connections": 6.0,
    "keys": 30.0,
    "data MiB": 2.0,
}


@dataclass(frozen=True)
class Growth:
    """A series: means of its second and of its last quarter, and its peak. ``is_flat``: they differ little."""

    name: str
    second: float
    last: float
    peak: float
    is_flat: bool
    is_by_design: bool

    @property
    def kind(self) -> str:
        """The part before the name of the process or table, with the unit."""
        return self.name.partition("/")[0]


def growths(samples: Samples) -> list[Growth]:
    """Return the growth of each series that has values in both quarters. The first quarter is the time to get warm."""
    end_s = samples[-1][0]
    second = [values for at, values in samples if end_s / 4 <= at < end_s / 2]
    last = [values for at, values in samples if at >= end_s * 3 / 4]
    found = []
    for name in sorted({name for _, values in samples for name in values}):
        before, after = ([values[name] for values in part if name in values] for part in (second, last))
        if before and after:
            peak = max(values[name] for _, values in samples if name in values)
            found.append(_growth(name, statistics.fmean(before), statistics.fmean(after), peak))
    return found


def _growth(name: str, before: float, after: float, peak: float) -> Growth:
    kind, _, of = name.partition("/")
    allowed = max(_ALLOWED[kind], _PART * before)
    return Growth(name, before, after, peak, is_flat=after - before <= allowed, is_by_design=of in BY_DESIGN)


def unexpected(found: Sequence[Growth]) -> list[str]:
    """Return a sentence for each series that grew and should not have."""
    return [
        f"{one.name} grew from {one.second:.1f} to {one.last:.1f}"
        for one in found
        if not one.is_flat and not one.is_by_design
    ]
