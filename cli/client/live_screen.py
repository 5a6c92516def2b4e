"""The live figures as text for a terminal: problems, speeds, queues, and each worker with a cell for each slot.

A cell fills with the tokens of its job; its colour is the service class. Without colours a letter stands before it.
"""

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from headrace.cli.bars import level, sparkline
from headrace.cli.render import Json, clock, duration, table, worker_name

CLASSES = ("interactive", "standard", "batch")
COLOURS = ("blue", "green", "yellow")
_HEALTH = {"late": "yellow", "stalled": "red", "lost": "red"}
_SEVERE = {"no_worker", "not_taken", "worker_lost", "worker_stalled"}

_WIDE = 100
_NARROW = 60
_LATE_S = 5.0
_LEASE_SHARE = 0.75


class LiveScreen:
    """What ``headrace top`` shows. ``state`` and ``history`` are the last events; a job keeps its cell.

    ``lost``: why there is no connection, shown above the last figures.
    """

    def __init__(self, address: str) -> None:
        self.state: Json | None = None
        self.history: Json = {"points": [], "speeds": []}
        self.lost: str | None = None
        self._address = address
        self._cells = _CellPlaces()

    def take(self, name: str, data: Json) -> None:
        """Take an event; others than ``live`` and ``history`` are left out."""
        if name == "live":
            self.state, self.lost = data, None
        elif name == "history":
            self.history = data

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._head(options.max_width)
        if self.lost is not None:
            yield Text(f"{self.lost}; it is tried again", "bold red")
        if self.state is None:
            return
        for name in self.state["missing"]:
            yield Text(f"the API cannot read {name}", "bold red")
        for problem in self.state["problems"]:
            yield Text(f"! {problem['text']}", "red" if problem["kind"] in _SEVERE else "yellow")
        yield from _speeds(self.history["points"], options.max_width)
        yield Text("")
        yield _queues(self.state["queues"], options.max_width, names_tenants=self.state["share"] == "all")
        yield from _scaling(self.state["queues"], options.max_width)
        yield from _hosts(self.state.get("hosts", []), options.max_width)
        has_colours = console.color_system is not None and not console.no_color
        yield Text("")
        yield _legend(has_colours=has_colours)
        self._cells.keep({worker["id"] for worker in self.state["workers"]})
        for worker in self.state["workers"]:
            yield _about(worker)
            yield _row(worker, self._cells.of(worker), has_colours=has_colours)
        if not self.state["workers"]:
            yield Text("no worker reports its jobs", "dim")

    def _head(self, width: int) -> Text:
        found = [("headrace", "bold"), (self._address, "")]
        if self.state is not None:
            found.append((clock(self.state["at"]), ""))
            found.append(("all tenants" if self.state["share"] == "all" else "your tenant only", ""))
        head = Text("  ").join(Text(*one) for one in found)
        head.truncate(width, overflow="ellipsis")
        return head


class _CellPlaces:
    """The place of each job in its worker's row: it stays while the job runs, so that cells do not jump."""

    def __init__(self) -> None:
        self._places: dict[str, dict[str, int]] = {}

    def keep(self, worker_ids: set[str]) -> None:
        """Forget the other workers."""
        self._places = {one: places for one, places in self._places.items() if one in worker_ids}

    def of(self, worker: Json) -> list[Json | None]:
        """Return the job of each cell; None: the slot is free."""
        jobs = {job["id"]: job for job in worker["jobs"]}
        known = self._places.get(worker["id"], {})
        places = {one: place for one, place in known.items() if one in jobs}
        free = (place for place in range(len(jobs) + len(places)) if place not in set(places.values()))
        places |= {one: next(free) for one in jobs if one not in places}
        self._places[worker["id"]] = places
        cells: list[Json | None] = [None] * max([worker["slots"], *(place + 1 for place in places.values())])
        for one, place in places.items():
            cells[place] = jobs[one]
        return cells


def _speeds(points: Sequence[Json], width: int) -> Iterator[Text]:
    last = points[-1] if points else {}
    p50, p95 = (last.get(f"first_token_{name}_ms") for name in ("p50", "p95"))
    told = f"p50 {_ms(p50)}  p95 {_ms(p95)}"
    occupancy = last.get("occupancy")
    yield _speed("tokens/s", f"{last.get('tokens_per_s', 0):,.0f}", points, "tokens_per_s", width)
    yield _speed("first token", told, points, "first_token_p95_ms", width)
    yield _speed("occupancy", "–" if occupancy is None else f"{occupancy:.0%}", points, "occupancy", width, top=1.0)


def _speed(name: str, told: str, points: Sequence[Json], field: str, width: int, top: float | None = None) -> Text:
    line = Text.assemble((f"{name:<12}", "dim"), (f"{told:<24}", "bold"))
    values = [point[field] for point in points]
    if (room := width - len(line.plain) - 1) > 0 and values:
        line.append(sparkline(values, min(room, 60), top or max([value or 0.0 for value in values])), "cyan")
    line.truncate(width)
    return line


def _queues(queues: Sequence[Json], width: int, *, names_tenants: bool) -> Table | Text:
    if not queues:
        return Text("no queues: no model is registered", "dim")
    is_narrow, is_wide = width < _NARROW, width >= _WIDE
    columns = ["queue", "workers", "running", "waiting", "oldest", "clears in"]
    columns += ["/".join(CLASSES)] if is_wide else []
    columns += ["most from"] if is_wide and names_tenants else []
    rows = []
    for queue in queues:
        by_class = "/".join(str(queue["by_class"][name]["jobs"]) for name in CLASSES)
        most = ", ".join(f"{one['name'] or one['id']} {one['jobs']:,}" for one in queue["tenants"])
        cells = [queue["name"], _workers(queue), f"{queue['running']:,}", f"{queue['queued']['jobs']:,}"]
        cells += [duration(queue["oldest_age_s"]), duration(queue["clears_in_s"] if queue["queued"]["jobs"] else None)]
        rows.append([*cells, by_class, most][: len(columns)])
    if is_narrow:
        columns, rows = [columns[0], *columns[3:5]], [[row[0], *row[3:5]] for row in rows]
    return table(*columns, rows=rows, no_wrap=True)


def _workers(queue: Json) -> Text:
    if queue["paused_at"] is not None:
        return Text("paused", "yellow")
    return Text(str(queue["workers"]), "red" if queue["workers"] == 0 and queue["queued"]["jobs"] else "")


def _scaling(queues: Sequence[Json], width: int) -> Iterator[Text]:
    """Yield how many workers each autoscaled queue should have, and why."""
    for queue in queues:
        if (scaling := queue.get("scaling")) is not None:
            told = f"  workers wanted: {scaling['workers']}; {scaling['reason']}"
            line = Text.assemble(("scale ", "dim"), (queue["name"], "bold"), told)
            line.truncate(width, overflow="ellipsis")
            yield line


def _hosts(hosts: Sequence[Json], width: int) -> Iterator[Text]:
    """Yield each model host, and the last version that it drained."""
    for host in hosts:
        places = ", ".join(f"{place['queue']} {place['state']}" for place in host["places"]) or "no worker"
        used, budget = (f"{host[name] / (1 << 30):.1f}" for name in ("needed_bytes", "budget_bytes"))
        line = Text.assemble(("host ", "dim"), (host["name"], "bold"), f"  {used} of {budget} GiB  {places}")
        line.truncate(width, overflow="ellipsis")
        yield line
        for event in [one for one in host["events"] if one["kind"] in {"draining", "failed"}][:1]:
            last = Text(f"  {clock(event['at'])}  {event['queue']} {event['kind']}: {event['reason']}", "dim")
            last.truncate(width, overflow="ellipsis")
            yield last


def _legend(*, has_colours: bool) -> Text:
    legend = Text("")
    for name, colour in zip(CLASSES, COLOURS, strict=True):
        legend.append("█" if has_colours else name[0], colour).append(f" {name}  ", "dim")
    return legend.append("░", "").append(" reads its prompt  ", "dim").append("·").append(" free slot", "dim")


def _about(worker: Json) -> Text:
    about = Text.assemble((worker["queue"], "bold"), "  ", worker_name(worker["id"]))
    if worker["health"] != "ok":
        about.append("  ").append(worker["health"], f"bold {_HEALTH[worker['health']]}")
    about.append(f"  {len(worker['jobs'])} of {worker['slots']} slots")
    if worker["total_blocks"]:
        about.append(f"  KV {1 - worker['free_blocks'] / worker['total_blocks']:.0%}")
    if worker["lease_age_s"] is not None:
        is_late = worker["lease_age_s"] > _LEASE_SHARE * worker["lease_s"]
        told = f"  lease {duration(worker['lease_age_s'])} of {duration(worker['lease_s'])}"
        about.append(told, "red" if is_late else "")
    about.append(f"  heartbeat {duration(worker['seen_age_s'])}", "red" if worker["seen_age_s"] > _LATE_S else "")
    if worker["engine"] is not None:
        about.append(f"  {worker['engine']}")
    return about


def _row(worker: Json, cells: Sequence[Json | None], *, has_colours: bool) -> Text:
    row = Text(" ", "dim" if worker["health"] == "lost" else "", overflow="fold")
    for job in cells:
        if job is None:
            row.append(" ·" if not has_colours else "·", "dim")
            continue
        style = COLOURS[job["class_rank"]] + (" underline" if job["attempt"] > 1 else "")
        row.append(("" if has_colours else CLASSES[job["class_rank"]][0]) + _fill(job), style)
    return row


def _fill(job: Json) -> str:
    """Return the block of a job. One that reads its prompt has none; one with a token has at least the lowest."""
    if job.get("progress") is not None:
        return level(max(job["progress"], 1 / 8))
    if not job["output_tokens"] or not job["max_tokens"]:
        return "░"
    return level(max(job["output_tokens"] / job["max_tokens"], 1 / 8))


def _ms(value: float | None) -> str:
    return duration(None if value is None else value / 1000)
