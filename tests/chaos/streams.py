"""Replays one job's stream as a client sees it: the final text, and each violated rule.

id <epoch>-<seq>: delta numbers increase by one across attempts, until ``job.restarted`` gives the number of deltas
that are still valid, and their text
id <epoch>-<seq>.<steps>: the same of a flow; the number of its steps' events increases by one with each of them
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
    steps: list[tuple[str, str]] = field(default_factory=list)
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
    place, _, num_steps = event_id.partition(".")
    epoch, seq = (int(part) for part in place.split("-"))
    if reading.ended is not None:
        reading.broken.append(f"{name} {event_id} after the end")
    is_step = name.startswith("step.")
    if is_step:
        _take_step(reading, event_id, name, text)
    if (epoch, seq) < reading.last or ((epoch, seq) == reading.last and not is_step):
        reading.broken.append(f"{name} {event_id} does not come after {reading.last[0]}-{reading.last[1]}")
    if int(num_steps or 0) != len(reading.steps):
        reading.broken.append(f"{name} {event_id} follows {len(reading.steps)} events of steps")
    reading.last = (epoch, seq)
    if name == "restarted":
        _restart(reading, event_id, text, kept)
    elif name == "delta":
        if seq != len(reading.deltas) + 1:
            reading.broken.append(f"delta {event_id} follows delta {len(reading.deltas)}")
        reading.deltas.append(text)
    elif name in TERMINAL:
        reading.ended = name


def _take_step(reading: Reading, event_id: str, name: str, step: str) -> None:
    if name == "step.finished" and (name, step) in reading.steps:
        reading.broken.append(f"{name} {event_id}: the step {step} finished before")
    reading.steps.append((name, step))


def _restart(reading: Reading, event_id: str, text: str, kept: int) -> None:
    reading.num_restarts += 1
    if "".join(reading.deltas[:kept]) != text:
        reading.broken.append(f"restarted {event_id} keeps {kept} deltas, and calls their text another")
    reading.deltas = reading.deltas[:kept]
