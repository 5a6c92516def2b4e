"""What a reader of one job's stream made of it: the text in their hands at the end, and every rule that was broken.

id <epoch>-<seq>: deltas count on by one, whichever attempt they come from, until ``job.restarted`` voids them all
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})


@dataclass
class Reading:
    """A reader's state after the events so far."""

    text: str = ""
    seq: int = 0
    last: tuple[int, int] = (-1, -1)
    ended: str | None = None
    num_restarts: int = 0
    num_deltas: int = 0
    broken: list[str] = field(default_factory=list)


def read_stream(events: Sequence[Sequence[str]]) -> Reading:
    """Follow ``[id, name, text]`` events as a client would, across all of its connections."""
    reading = Reading()
    for event_id, name, text in events:
        _take(reading, event_id, name.removeprefix("job."), text)
    return reading


def _take(reading: Reading, event_id: str, name: str, text: str) -> None:
    epoch, seq = (int(part) for part in event_id.split("-"))
    if reading.ended is not None:
        reading.broken.append(f"{name} {event_id} after the end")
    if (epoch, seq) <= reading.last:
        reading.broken.append(f"{name} {event_id} does not come after {reading.last[0]}-{reading.last[1]}")
    reading.last = (epoch, seq)
    if name == "restarted":
        reading.text, reading.seq = "", 0
        reading.num_restarts += 1
    elif name == "delta":
        if seq != reading.seq + 1:
            reading.broken.append(f"delta {event_id} follows delta {reading.seq}")
        reading.seq = seq
        reading.num_deltas += 1
        reading.text += text
    elif name in TERMINAL:
        reading.ended = name
