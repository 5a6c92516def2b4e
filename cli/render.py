"""Output of the commands: tables and text for people, or JSON."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.client import JobInfo
from headrace.store.registry.quality_report import report_line

Json = dict[str, Any]

# Nothing is truncated in a file or a pipe, which has no width.
_NO_WINDOW = 250


# Without markup: names chosen by callers are printed unchanged.
out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _NO_WINDOW)
err = Console(stderr=True, highlight=False, markup=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

COLOURS = {
    "queued": "yellow",
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
    "expired": "red",
}


def show(data: Any, told: RenderableType, *, as_json: bool) -> None:
    """Print the result of a command: ``data`` as JSON, else the text or table."""
    if as_json:
        out.print_json(data=data, default=str)
    else:
        out.print(told, soft_wrap=isinstance(told, str | Text))


def print_line(data: Any) -> None:
    """Print one JSON object on its own line at once: an event of a stream."""
    write_text(orjson.dumps(data).decode() + "\n")


def say(sentence: str) -> None:
    """Print progress on stderr."""
    err.print(Text.assemble(("· ", "dim"), sentence), soft_wrap=True)


def warn(sentence: str) -> None:
    """Print a warning on stderr."""
    err.print(Text.assemble(("! ", "yellow"), sentence), soft_wrap=True)


def say_stack(home: str | None) -> None:
    """Print the folder of the running stack that a command uses; None: the settings name a server."""
    if home is not None:
        err.print(f"· the stack in {home}", style="dim", soft_wrap=True)


def table(*columns: str, rows: Iterable[Sequence[RenderableType]], no_wrap: bool = False) -> Table:
    """A table in the style of all commands."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, no_wrap=no_wrap)
    for row in rows:
        made.add_row(*row)
    return made


def write_text(text: str) -> None:
    """Write a model's text unchanged, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=COLOURS.get(status, ""))


def progress(told: Mapping[str, Any]) -> str:
    """Return how far a job is, as one line."""
    return f"{told['done']:g} of {told['total']:g} {told['message']}".rstrip()


def summary(job: JobInfo) -> str:
    """One line with the result of a job."""
    parts = [f"{job['id']} {job['status']}"]
    if usage := job["usage"]:
        parts.append(f"{usage['input_tokens']} + {usage['output_tokens']} tokens")
        if usage["first_token_ms"] is not None:
            parts.append(f"first token after {usage['first_token_ms']:.0f} ms")
        if usage["compute_ms"] is not None:
            parts.append(f"computed {usage['compute_ms']:.0f} ms")
    if cut := _cut(job):
        parts.append(f"the answer {cut}")
    if error := job["error"]:
        parts.append(f"{error['code']}: {error['message']}")
    return ", ".join(parts)


def _cut(job: JobInfo) -> str:
    """What to say of an answer that the limit of tokens ended, which nothing else of a success shows; else nothing."""
    is_cut = (job.get("output") or {}).get("finish_reason") == "length"
    return "was cut at its limit of tokens: --max-tokens sets it" if is_cut else ""


def jobs_table(jobs: Sequence[JobInfo]) -> Table:
    """The newest jobs, one per row."""
    columns = ("job", "status", "model", "created", "tokens", "queued", "computed")
    return table(*columns, rows=map(_job_row, jobs), no_wrap=True)


def _job_row(job: JobInfo) -> Sequence[RenderableType]:
    usage = job["usage"]
    return (
        job["id"],
        status_text(job["status"]),
        f"{job['model']}@{job['model_version']}",
        ago(job["created_at"]),
        f"{usage['input_tokens']}+{usage['output_tokens']}" if usage else "",
        _ms(usage and usage["queue_ms"]) or _starts(job),
        _ms(usage and usage["compute_ms"]),
    )


def job_facts(job: JobInfo, waits_because: str = "") -> Text:
    """The details of one job."""
    place, usage, error, template = job["queue"], job["usage"], job["error"], job.get("template")
    facts: dict[str, str | Text] = {
        "job": Text.assemble(job["id"], " ", status_text(job["status"])),
        "model": f"{job['model']}@{job['model_version']}",
        "queue": f"place {place['position']} in {place['name']}" if place["position"] else "",
        "waits": waits_because,
        "created": ago(job["created_at"]),
        "starts": _starts(job),
        "started": ago(job["started_at"]) if job["started_at"] else "",
        "ended": ago(job["completed_at"]) if job["completed_at"] else "",
        "attempt": f"{job['attempt']} of at most {job['max_attempts']}" if job["attempt"] else "",
        "tokens": f"{usage['input_tokens']} + {usage['output_tokens']}" if usage else "",
        "first token": _took(usage and usage["first_token_ms"]),
        "computed": _took(usage and usage["compute_ms"]),
        "answer": _cut(job),
        "error": f"{error['code']}: {error['message']}" if error else "",
        "prompt": f"{template['name'] or template['id']}@{template['version']}" if template else "",
        "contents": "are kept no longer" if job["purged_at"] else "",
    }
    page = Text()
    for name, fact in facts.items():
        if fact:
            page.append(f"{name:<12}", "dim").append(fact).append("\n")
    for asked in job.get("waiting_for") or ():
        what = f"an approval of {asked['tool']} {asked['arguments']}: headrace approvals approve {asked['id']}"
        page.append(f"{'waits for':<12}", "dim").append(what, "yellow").append("\n")
    for step in job.get("steps") or ():
        version = f" {step['model']}@{step['model_version']}"
        line = Text.assemble(step["name"], " ", status_text(step["status"]), version)
        page.append(f"{'step':<12}", "dim").append(line).append("\n")
    return page[:-1]


def queues_table(queues: Sequence[Json]) -> Table:
    """Waiting and running jobs of each queue, one per row."""
    columns = ("queue", "workers", "running", "queued", "interactive/standard/batch", "oldest", "started a second")
    return table(*columns, "paused", rows=map(_queue_row, queues), no_wrap=True)


def _queue_row(queue: Json) -> Sequence[RenderableType]:
    rate, oldest_s, num_workers = queue["rate"], queue["oldest_age_s"], queue.get("workers", "")
    return (
        queue["name"],
        Text(str(num_workers), "yellow" if num_workers == 0 else ""),
        str(queue.get("running", "")),
        str(queue["queued"]["jobs"]),
        "/".join(str(queue["by_class"][name]["jobs"]) for name in ("interactive", "standard", "batch")),
        "" if oldest_s is None else f"{oldest_s:.1f} s",
        "" if rate is None else f"{rate['jobs_per_s']:.1f}",
        ago(queue["paused_at"]) if queue["paused_at"] else "",
    )


def dead_letters_table(letters: Sequence[Json]) -> Table:
    """Dead letters, one per row."""
    rows = (
        (one["id"], one["queue"], one["code"], str(one["crashes"]), ago(one["created_at"]), one["replayed_as"] or "")
        for one in letters
    )
    return table("job", "queue", "code", "crashes", "given up", "replayed as", rows=rows, no_wrap=True)


def replays_table(replays: Sequence[Json]) -> Table:
    """The new job of each dead letter."""
    return table("dead letter", "new job", rows=((one["id"], one["job_id"]) for one in replays), no_wrap=True)


def models_table(models: Sequence[Json]) -> Table:
    """The models, one per row."""
    rows = (
        (
            model["id"],
            ", ".join(str(version) for version in model.get("versions") or []),
            ", ".join(f"{alias} → {version}" for alias, version in sorted((model.get("aliases") or {}).items())),
            model.get("engine", ""),
        )
        for model in models
    )
    return table("model", "versions", "aliases", "engine", rows=rows)


def verification_text(version: Json) -> str:
    """What the verification of a version found, in one line; empty without one."""
    found = version["verification"]
    if found is None:
        return version["state_reason"] or ""
    parts = [
        version["state_reason"],
        found.get("server"),
        found.get("dtype"),
        f"loaded in {found['load_s']:.1f} s" if found.get("load_s") is not None else None,
        f"{found['memory_bytes'] / 1e9:.1f} GB" if found.get("memory_bytes") else None,
        f"{found['context_tokens']:,} tokens a request" if found.get("context_tokens") else None,
        f"{found['tokens_per_s']:.0f} tokens/s" if found.get("tokens_per_s") else None,
        f"golden answers {found['golden']}" if found.get("golden") else None,
        report_line(found["quality"]) if found.get("quality") else None,
    ]
    return ", ".join(part for part in parts if part)


def template_text(use: Json | None) -> str:
    """Return the default template of a version as ``name@2``."""
    return "" if use is None else f"{use['name'] or use['id']}@{use['version']}"


def _runs_on(version: Json) -> str:
    if version["base"] is None:
        lost = version.get("after_a_loss")
        return str(version["engine"]) + (f"; a lost answer {lost}" if lost else "")
    return f"{'weights' if version['shares_weights'] else 'adapter'} of {version['base']}"


def versions_table(versions: Sequence[Json]) -> Table:
    """The versions of models, one per row."""
    rows = (
        (
            one["id"],
            one["state"],
            ", ".join(one["aliases"]),
            _runs_on(one),
            one["dtype"],
            f"{one['context_window']:,}",
            one["digest"][:12],
            "?" if one["workers"] is None else str(one["workers"]),
            str(one["queued"]),
            verification_text(one),
            template_text(one["template"]),
        )
        for one in versions
    )
    about = ("version", "state", "aliases", "engine", "dtype", "window", "digest")
    return table(*about, "workers", "waiting", "verification", "template", rows=rows)


def endpoints_table(endpoints: Sequence[Json]) -> Table:
    """Webhook endpoints, one per row."""
    rows = (
        (
            one["id"],
            one["url"],
            ", ".join(one["events"]),
            f"{one['disabled_reason'] or 'yes'}, {ago(one['disabled_at'])}" if one["disabled_at"] else "",
            ago(one["failing_since"]) if one["failing_since"] else "",
        )
        for one in endpoints
    )
    return table("endpoint", "url", "events", "disabled", "failing since", rows=rows)


def deliveries_table(deliveries: Sequence[Json]) -> Table:
    """Webhook deliveries, one per row."""
    rows = (
        (
            one["id"],
            one["type"],
            one["job_id"] or one["batch_id"] or one["about_endpoint_id"] or one["registry_id"],
            one["status"],
            str(one["attempts"]),
            ago(one["created_at"]),
            one["last_error"] or "",
        )
        for one in deliveries
    )
    return table("delivery", "event", "of", "status", "tries", "created", "last error", rows=rows)


def tries_table(tries: Sequence[Json]) -> Table:
    """The attempts of a delivery, one per row."""
    rows = (
        (
            str(one["attempt"]),
            ago(one["at"]),
            _ms(one["duration_ms"]),
            "" if one["status"] is None else str(one["status"]),
            one["error"] or "",
        )
        for one in tries
    )
    return table("try", "at", "took", "status", "error", rows=rows)


def _took(ms: float | None) -> str:
    return "" if ms is None else duration(ms / 1000)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms"


def _starts(job: JobInfo) -> str:
    """When the job starts, if it waits for that."""
    start_after = job.get("start_after")
    if not start_after or job["status"] != "queued" or start_after <= datetime.now(UTC).timestamp():
        return ""
    return f"not before {datetime.fromtimestamp(start_after, UTC):%Y-%m-%d %H:%M} UTC"


def ago(created_at: float) -> str:
    """Time since a Unix time."""
    seconds = max(0.0, (datetime.now(UTC) - datetime.fromtimestamp(created_at, UTC)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def duration(seconds: float | None) -> str:
    """A length of time; – if it is not known."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, length, until in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 129_600)):
        if seconds < until:
            return f"{seconds / length:.1f} {unit}" if seconds < 10 else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def clock(at: float, *, with_ms: bool = False) -> str:
    """A Unix time as the local time of day."""
    time = datetime.fromtimestamp(at).astimezone()
    return time.strftime("%H:%M:%S") + (f".{time.microsecond // 1000:03}" if with_ms else "")


def worker_name(worker_id: str) -> str:
    """Host and process id of a worker, as the console shows them."""
    host, _, rest = worker_id.partition(":")
    return f"{host.rpartition('@')[2]} · {rest.partition(':')[0]}" if rest else worker_id
