"""Append-only JSON lines that survive a kill of the process that writes them; the checker reads them later."""

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def now_s() -> float:
    """Wall clock, Unix seconds, comparable with the database's times on the same machine."""
    return datetime.now(UTC).timestamp()


class Journal:
    """One file. Each event is one line with its time ``t`` and its ``kind``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def write(self, kind: str, **fields: object) -> None:
        """Add an event."""
        line = json.dumps({"t": round(now_s(), 4), "kind": kind, **fields})
        with self._lock:
            self._file.write(line + "\n")

    def close(self) -> None:
        """Write nothing more."""
        with self._lock:
            self._file.close()


def read_journal(path: Path) -> list[Json]:
    """Return the events, without a line truncated by a kill."""
    if not path.exists():
        return []
    return list(_parsed(path.read_text(errors="replace").splitlines()))


def _parsed(lines: list[str]) -> list[Json]:
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
