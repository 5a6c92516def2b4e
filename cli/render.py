"""How jobs and models look on a terminal. Knows the job object's fields; talks to nobody."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]

# Into a file or a pipe nothing is cut: whoever reads it there has no window.
_NO_WINDOW = 250


out = Console(highlight=False, width=None if sys.stdout.isatty() else _NO_WINDOW)
err = Console(stderr=True, highlight=False)

COLOURS = {
    "queued": "yellow",
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
    "expired": "red",
}


def write_text(text: str) -> None:
    """Write a model's words as they are, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=COLOURS.get(status, ""))


def summary(job: Json) -> str:
    """One line on how a job went."""
    parts = [f"{job['id']} {job['status']}"]
    usage = job.get("usage")
    if usage:
        parts.append(f"{usage['input_tokens']} + {usage['output_tokens']} tokens")
        if usage.get("first_token_ms") is not None:
            parts.append(f"first token after {usage['first_token_ms']:.0f} ms")
        if usage.get("compute_ms") is not None:
            parts.append(f"computed {usage['compute_ms']:.0f} ms")
    if job.get("error"):
        parts.append(f"{job['error']['code']}: {job['error']['message']}")
    return ", ".join(parts)


def jobs_table(jobs: Sequence[Json]) -> Table:
    """The newest jobs, one a row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("job", "status", "model", "created", "tokens", "queued", "computed"):
        table.add_column(column, no_wrap=True)
    for job in jobs:
        usage = job.get("usage") or {}
        table.add_row(
            job["id"],
            status_text(job["status"]),
            f"{job['model']}@{job['model_version']}",
            _ago(job["created_at"]),
            f"{usage['input_tokens']}+{usage['output_tokens']}" if usage else "",
            _ms(usage.get("queue_ms")),
            _ms(usage.get("compute_ms")),
        )
    return table


def queues_table(queues: Sequence[Json]) -> Table:
    """What waits in each queue, one a row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("queue", "queued", "interactive/standard/batch", "oldest", "started a second", "paused"):
        table.add_column(column, no_wrap=True)
    for queue in queues:
        rate, oldest_s = queue["rate"], queue["oldest_age_s"]
        table.add_row(
            queue["name"],
            str(queue["queued"]["jobs"]),
            "/".join(str(queue["by_class"][name]["jobs"]) for name in ("interactive", "standard", "batch")),
            "" if oldest_s is None else f"{oldest_s:.1f} s",
            "" if rate is None else f"{rate['jobs_per_s']:.1f}",
            _ago(queue["paused_at"]) if queue["paused_at"] else "",
        )
    return table


def dead_letters_table(letters: Sequence[Json]) -> Table:
    """Jobs that were given up, one a row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("job", "queue", "code", "crashes", "given up", "replayed as"):
        table.add_column(column, no_wrap=True)
    for letter in letters:
        table.add_row(
            letter["id"],
            letter["queue"],
            letter["code"],
            str(letter["crashes"]),
            _ago(letter["created_at"]),
            letter["replayed_as"] or "",
        )
    return table


def replays_table(replays: Sequence[Json]) -> Table:
    """Which new job came of which that was given up."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("dead letter", "new job"):
        table.add_column(column, no_wrap=True)
    for replay in replays:
        table.add_row(replay["id"], replay["job_id"])
    return table


def models_table(models: Sequence[Json]) -> Table:
    """The models, one a row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("model", "versions", "aliases"):
        table.add_column(column)
    for model in models:
        aliases = model.get("aliases") or {}
        versions = model.get("versions") or []
        table.add_row(
            model["id"],
            ", ".join(str(version) for version in versions),
            ", ".join(f"{alias} → {version}" for alias, version in sorted(aliases.items())),
        )
    return table


def endpoints_table(endpoints: Sequence[Json]) -> Table:
    """Webhook endpoints, one a row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("endpoint", "url", "events", "disabled", "failing since"):
        table.add_column(column)
    for endpoint in endpoints:
        disabled = endpoint["disabled_at"]
        table.add_row(
            endpoint["id"],
            Text(endpoint["url"]),
            ", ".join(endpoint["events"]),
            f"{endpoint['disabled_reason'] or 'yes'}, {_ago(disabled)}" if disabled else "",
            _ago(endpoint["failing_since"]) if endpoint["failing_since"] else "",
        )
    return table


def deliveries_table(deliveries: Sequence[Json]) -> Table:
    """Webhook deliveries, one a row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("delivery", "event", "of", "status", "tries", "created", "last error"):
        table.add_column(column)
    for one in deliveries:
        table.add_row(
            one["id"],
            one["type"],
            one["job_id"] or one["batch_id"] or one["about_endpoint_id"],
            one["status"],
            str(one["attempts"]),
            _ago(one["created_at"]),
            Text(one["last_error"] or ""),
        )
    return table


def tries_table(tries: Sequence[Json]) -> Table:
    """The tries of a delivery, one a row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("try", "at", "took", "status", "error"):
        table.add_column(column)
    for one in tries:
        status = "" if one["status"] is None else str(one["status"])
        table.add_row(str(one["attempt"]), _ago(one["at"]), _ms(one["duration_ms"]), status, Text(one["error"] or ""))
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms"


def _ago(created_at: float) -> str:
    seconds = max(0.0, (datetime.now(UTC) - datetime.fromtimestamp(created_at, UTC)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
