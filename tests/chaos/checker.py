"""Checks the promises of the product: a pure function of the recorded history of a run.

Each rule reports its violations, one line each. A rule that checked nothing does not pass: a run without any kill, or
without a refused stale write where one was expected, is a failure.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.chaos import flow_rules
from tests.chaos.causes import Causes
from tests.chaos.history import History, Job
from tests.chaos.oracle import answer
from tests.chaos.streams import read_stream

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
POISONOUS = frozenset({"exit", "hang"})
REASONS = frozenset({"deadline_unreachable", "queue_full", "rate_limit_exceeded"})
# Both clocks are the machine's; stored times are rounded to microseconds, logged ones to 0.1 ms.
CLOCK_SLACK_S = 0.01


@dataclass
class Findings:
    """Violations by promise, and the numbers of checked items."""

    violations: dict[str, list[str]] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)

    @property
    def broken(self) -> dict[str, int]:
        """Number of violations of each promise."""
        return {name: len(found) for name, found in self.violations.items() if found}


def check(
    history: History,
    *,
    needs_kills: bool = True,
    needs_stale: bool = True,
    needs_flows: bool = False,
    needs_calls: bool = False,
    forbids_500: bool = False,
) -> Findings:
    """Apply every rule. ``forbids_500``: an answer of 500 is a violation too, although the customer asked again."""
    findings = Findings({name: list(rule(history)) for name, rule in RULES.items()}, count_kills(history))
    if needs_kills and not sum(findings.kills.values()):
        findings.violations["kills"] = ["the nemesis killed nothing: nothing was proved"]
    if needs_stale and not stale_writes(history):
        findings.violations["stale_writes"] = ["no stale write was refused: no paused worker came back to write"]
    if needs_flows and not any(job.is_flow and job.state == "succeeded" for job in history.jobs):
        findings.violations["flows"] = ["no flow succeeded: nothing was proved of them"]
    if needs_calls and not flow_rules.num_called(history):
        findings.violations["calls"] = ["no chat with a tool succeeded: nothing was proved of them"]
    if forbids_500:
        findings.violations["internal_errors"] = list(internal_errors(history))
    return findings


def count_kills(history: History) -> Counter[str]:
    """Count the processes that were killed by a signal, by kind."""
    kills: Counter[str] = Counter()
    for event in history.of_nemesis("exit"):
        if event["code"] == -9:
            kills[event["member"]] += 1
        elif event["code"] in (70, 86):
            kills["engine"] += 1
    return kills


def stale_writes(history: History) -> int:
    """Count outcomes that were refused because a newer attempt held the job, or had ended it."""
    return history.log_counts["stale_finish_refused"]


def lost(history: History) -> Iterator[str]:
    """Every accepted job has a row."""
    known = {job.id for job in history.jobs}
    for event in history.of_client("accepted"):
        if event["job"] not in known:
            yield f"{event['job']} was accepted and is not in the database"
    for event in history.of_client("missing"):
        yield f"{event['job']} was accepted and then answered 404"


def stuck(history: History) -> Iterator[str]:
    """Every row has ended, and its end is recorded."""
    for job in history.rows:
        if job.state not in TERMINAL:
            yield f"{job.id} is still {job.state} (attempt {job.attempt}, {job.crashes} crashes)"
        elif job.terminal is None:
            yield f"{job.id} is {job.state} without a terminal row"


def duplicate_terminal(history: History) -> Iterator[str]:
    """A job ends once, and all clients saw the same end."""
    told = defaultdict(set)
    for event in history.of_client("seen"):
        told[event["job"]].add(event["status"])
    for event in history.hooks:
        told[event["job"]].add(event["type"].removeprefix("job."))
    for job in history.rows:
        if job.terminal is not None and job.terminal != job.state:
            yield f"{job.id} is {job.state} and its terminal row says {job.terminal}"
        if len(job.terminal_events) > 1:
            yield f"{job.id} ended {len(job.terminal_events)} times: {', '.join(job.terminal_events)}"
        if other := told[job.id] - {job.state}:
            yield f"{job.id} is {job.state} and somebody was told {', '.join(sorted(other))}"


def miscounted(history: History) -> Iterator[str]:
    """The ledger counts the usage of each job once, and nothing for a job that never ran."""
    yield from flow_rules.miscounted_flows(history)
    for job in history.rows:
        if not job.is_flow and job.billed != job.used:
            yield f"{job.id} used {job.used} and the ledger says {job.billed}"


def duplicate_jobs(history: History) -> Iterator[str]:
    """One order with one idempotency key is one job."""
    for prompt, number in Counter(job.prompt for job in history.jobs).items():
        if number > 1:
            yield f"{number} jobs for one order: {prompt[:40]!r}"
    jobs_of = defaultdict(set)
    for event in history.of_client("accepted"):
        jobs_of[event["n"]].add(event["job"])
    for n, ids in jobs_of.items():
        if len(ids) > 1:
            yield f"order {n} was answered with {len(ids)} jobs"


def splices(history: History) -> Iterator[str]:
    """A stream is ordered, has no hole, and its text is the stored output."""
    jobs = {job.id: job for job in history.jobs}
    for event in history.of_client("stream"):
        reading = read_stream(event["events"])
        for problem in reading.broken:
            yield f"{event['job']}: {problem}"
        job = jobs.get(event["job"])
        if reading.ended is None or job is None:
            continue
        if reading.ended != job.state:
            yield f"{job.id}: the stream ended {reading.ended}, the job is {job.state}"
        if job.text is not None and reading.text != job.text:
            yield f"{job.id}: the stream gave {len(reading.text)} characters, {len(job.text)} are stored, not the same"
    for job in history.rows:
        if job.state == "succeeded" and job.stored_text != job.text and not job.is_call:
            yield f"{job.id}: the stored deltas are not the stored output"


def wrong_output(history: History) -> Iterator[str]:
    """Every answer matches its prompt, recomputed here: the whole for a success, a prefix for a stopped job."""
    yield from flow_rules.wrong_flows(history)
    for job in history.jobs:
        if job.is_flow:
            continue
        expected = answer(job.prompt, job.max_tokens, ends=job.ends)
        if job.state == "succeeded" and job.text != expected:
            yield f"{job.id}: the output is not the prompt's"
        elif job.text and not expected.startswith(job.text):
            yield f"{job.id} ({job.state}): the partial output is not the prompt's"
    outputs = {job.id: job.text for job in history.jobs}
    for event in history.of_client("seen"):
        if event["status"] == "succeeded" and event["text"] != outputs.get(event["job"]):
            yield f"{event['job']}: a client was shown another output than the stored one"


def poison(history: History) -> Iterator[str]:
    """A job that kills workers fails as ``poison`` after at most three; another job only after three faults."""
    marks = _marks(history)
    causes = Causes(history, frozenset(job.id for job in history.jobs if marks.get(job.prompt) in POISONOUS))
    by_old = {one.job for one in history.attempts if one.worker.startswith("old-")}
    # A flow fails with the code of its step, which is judged itself.
    for job in (one for one in history.rows if not one.is_flow):
        mark = marks.get(job.prompt)
        if mark in POISONOUS:
            # A worker of the previous release ignores the marks, so the job is harmless there.
            if job.state in TERMINAL and job.code != "poison" and job.id not in by_old:
                yield f"{job.id} ({mark}) is {job.state} {job.code}, not poison"
            if job.crashes > 3:
                yield f"{job.id} ({mark}) took {job.crashes} workers along"
        elif job.code == "poison" and not causes.explain(job.id):
            yield f"{job.id} is innocent and failed as poison"


def innocents(history: History) -> Iterator[str]:
    """A normal job does not fail."""
    marks = _marks(history)
    for job in history.rows:
        if job.state == "failed" and marks.get(job.prompt) is None and job.code != "poison":
            yield f"{job.id} is innocent and failed: {job.code}"


def faulty_rows(history: History) -> Iterator[str]:
    """A row with NaN fails as ``numerical_error``; a row that makes its step raise or run out of memory fails alone."""
    marks = _marks(history)
    by_old = {one.job for one in history.attempts if one.worker.startswith("old-")}
    allowed = {"nan": {"numerical_error"}, "oom": {"out_of_memory", "max_attempts_exceeded"}}
    for job in history.jobs:
        mark = marks.get(job.prompt)
        if mark in ("nan", "oom", "raise") and job.id not in by_old and job.state in TERMINAL:
            if job.state != "failed" or job.code == "poison":
                yield f"{job.id} ({mark}) is {job.state} {job.code}"
            elif mark in allowed and job.code not in allowed[mark]:
                yield f"{job.id} ({mark}) failed {job.code}"


def expired_early(history: History) -> Iterator[str]:
    """No job expires before its deadline, by the database's clock and the customer's request."""
    asked = {event["prompt"]: event["deadline_ms"] for event in history.of_client("order")}
    for job in history.rows:
        if job.state != "expired" or job.completed_at is None:
            continue
        if job.deadline_at is None or job.completed_at < job.deadline_at - CLOCK_SLACK_S:
            yield f"{job.id} expired {(job.deadline_at or 0) - job.completed_at:.3f} s early"
        wanted_ms = asked.get(job.prompt)
        if wanted_ms is not None and job.completed_at - job.created_at < wanted_ms / 1000 - CLOCK_SLACK_S:
            yield f"{job.id} was given {job.completed_at - job.created_at:.3f} s of {wanted_ms / 1000} s"


def cancels(history: History) -> Iterator[str]:
    """A job reported as cancelled while queued is cancelled; no other job is."""
    states = {job.id: job for job in history.jobs}
    asked = {event["n"] for event in history.of_client("order") if event["cancel_after_s"] is not None}
    for event in history.of_client("cancel"):
        job = states.get(event["job"])
        if job and event["status"] in TERMINAL and event["status"] != job.state:
            yield f"{job.id}: a cancel was answered {event['status']}, the job is {job.state}"
    order_of = {event["prompt"]: event["n"] for event in history.of_client("order")}
    for job in history.jobs:
        if job.state == "cancelled" and order_of.get(job.prompt) not in asked:
            yield f"{job.id} is cancelled and nobody asked for it"


def webhooks(history: History) -> Iterator[str]:
    """The end of each job with a receiver is delivered, signed, with one id and the job's content."""
    wanted = _receivers(history)
    calls = defaultdict(list)
    for event in history.hooks:
        calls[event["job"]].append(event)
        if not event["signed"]:
            yield f"{event['job']}: a webhook with a bad signature"
    for job in history.jobs:
        if job.prompt not in wanted:
            continue
        ids = {event["id"] for event in calls[job.id]}
        if len(ids) > 1:
            yield f"{job.id}: {len(ids)} webhook ids for one end"
        if not any(event["answer"].startswith("2") for event in calls[job.id]) and job.state in TERMINAL:
            yield f"{job.id} ended {job.state} and its receiver did not hear of it ({len(calls[job.id])} calls)"
    for delivery in history.deliveries:
        if delivery.state == "failed":
            yield f"{delivery.job}: its webhook was given up after {delivery.attempts} tries"


def customers(history: History) -> Iterator[str]:
    """Every order has a result: accepted, refused with a reason, or given up after a long time."""
    for event in history.of_client("refused"):
        if event["code"] not in REASONS:
            yield f"order {event['n']} was refused: {event['status']} {event['code']}"
    answered = {event["n"] for kind in ("accepted", "refused", "gave_up") for event in history.of_client(kind)}
    for event in history.of_client("order"):
        if event["n"] not in answered:
            yield f"order {event['n']} was never answered, and nobody gave it up"
    for event in history.of_client("client_error"):
        yield f"order {event['n']}: the customer broke: {event['error']} in {event['where']}"


def internal_errors(history: History) -> Iterator[str]:
    """No request is answered with 500: an outage that the product knows of is a 503."""
    for event in history.of_client("server_error"):
        if event["status"] == 500:
            yield f"order {event['n']}: 500 from port {event['port']} at {event['path']}"


def _marks(history: History) -> dict[str, str | None]:
    return {event["prompt"]: event["mark"] for event in history.of_client("order")}


def _receivers(history: History) -> dict[str, Job | None]:
    """Prompts of orders with a receiver that finally answers well."""
    good = {"ok", "flaky"}
    return {event["prompt"]: None for event in history.of_client("order") if event["hook"] in good}


RULES: dict[str, Callable[[History], Iterator[str]]] = {
    "lost": lost,
    "stuck": stuck,
    "duplicate_terminal": duplicate_terminal,
    "miscounted": miscounted,
    "duplicate_jobs": duplicate_jobs,
    "splices": splices,
    "wrong_output": wrong_output,
    "poison": poison,
    "innocents": innocents,
    "faulty_rows": faulty_rows,
    "expired_early": expired_early,
    "cancels": cancels,
    "webhooks": webhooks,
    "customers": customers,
    "flow_ends": flow_rules.flow_ends,
    "step_ends": flow_rules.step_ends,
    "step_order": flow_rules.step_order,
    "flow_stops": flow_rules.flow_stops,
    "tool_keys": flow_rules.tool_keys,
}
