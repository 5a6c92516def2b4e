"""How long nothing was accepted, and nothing claimed, around each fault: pure functions of the history of a run."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from tests.chaos.history import History

Json = dict[str, Any]


def longest_pause(times: Sequence[float], since: float, until: float) -> float:
    """Return the longest time without an event between ``since`` and ``until``, in seconds.

    Until an event after ``until``, if nothing came before.
    """
    inside = sorted(at for at in times if since <= at <= until)
    after = min((at for at in times if at > until), default=until)
    marks = [since, *inside, until if inside else after]
    return max(later - earlier for earlier, later in pairwise(marks))


def of_faults(history: History) -> list[Json]:
    """Return for each fault what it was and the longest pauses of accepts and claims while it lasted."""
    accepted = [float(event["t"]) for event in history.of_client("accepted")]
    claimed = [one.started_at for one in history.attempts]
    overs = [float(event["t"]) for event in history.of_nemesis("phase") if event["name"] == "over"]
    found = []
    for event in history.of_nemesis("phase"):
        since = float(event["t"])
        if event["name"] == "over":
            continue
        until = min((at for at in overs if at > since), default=since)
        found.append(
            {
                "fault": event["name"],
                "lasted_s": round(until - since, 1),
                "without_accept_s": round(longest_pause(accepted, since, until), 2),
                "without_claim_s": round(longest_pause(claimed, since, until), 2),
                "accepted": sum(since <= at <= until for at in accepted),
            }
        )
    return found


def without_leader(history: History, led_from: Sequence[str]) -> list[float]:
    """Return the seconds from each signal to a leading dispatcher until one began to lead."""
    began = sorted(datetime.fromisoformat(text).timestamp() for text in led_from)
    signals = [
        float(event["t"])
        for event in history.of_nemesis("signal")
        if event["member"] == "dispatcher" and event["signal"] != "SIGCONT"
    ]
    return [round(next((at for at in began if at > since), since) - since, 2) for since in signals]
