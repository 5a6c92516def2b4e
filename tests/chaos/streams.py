"""Replays one job's stream as a client sees it: the final text, and each violated rule.

id <epoch>-<seq>: delta numbers increase by one across attempts, until ``job.restarted`` gives the number of deltas
that are still valid, and their text
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})


@dataclass
class Reading:
    """A reader's state after the events so far."""

    deltas: list[str] = field(default_factory=list)
    last: tuple[int, int] = (-1, -1)
    ended: str | None = None
    num_restarts: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The reader's text."""
        return "".join(self.deltas)


def read_stream(events: Sequence[Sequence[Any]]) -> Reading:
    """Follow ``[id, name, text, kept]`` events as a client would, across all of its connections."""
    reading = Reading()
    for event_id, name, text, kept in events:
        _take(reading, event_id, name.removeprefix("job."), text, kept)
    return reading


def _take(reading: Reading, event_id: str, name: str, text: str, kept: int) -> None:
    epoch, seq = (int(part) for part in event_id.split("-"))
    if reading.ended is not None:
        reading.broken.append(f"{name} {event_id} after the end")
    if (epoch, seq) <= reading.last:
        reading.broken.append(f"{name} {event_id} does not come after {reading.last[0]}-{reading.last[1]}")
    reading.last = (epoch, seq)
    if name == "restarted":
        _restart(reading, event_id, text, kept)
    elif name == "delta":
        if seq != len(reading.deltas) + 1:
            reading.broken.append(f"delta {event_id} follows delta {len(reading.deltas)}")
        reading.deltas.append(text)
    elif name in TERMINAL:
        reading.ended = name


def _restart(reading: Reading, event_id: str, text: str, kept: int) -> None:
    reading.num_restarts += 1
    if "".join(reading.deltas[:kept]) != text:
        reading.broken.append(f"restarted {event_id} keeps {kept} deltas, and calls their text another")
    reading.deltas = reading.deltas[:kept]
