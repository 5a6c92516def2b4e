"""The checker's rules for flows, the jobs of several steps. Like every rule, each reports its violations."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tests.chaos.flows import SHAPES, answers
from tests.chaos.history import Attempt, History, Job
from tests.chaos.journal import Json
from tests.chaos.tools import SHAPE, STEPS, tool_answers

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
# All these times are Postgres's. An attempt has the time at which its transaction began.
SLACK_S = 0.01


def flow_ends(history: History) -> Iterator[str]:
    """A flow has the steps of its order, succeeds if all of them do, and does not end before them."""
    orders = _orders(history)
    for flow, steps in _flows(history):
        names = Counter(step.step for step in steps)
        order = orders.get(flow.prompt)
        if order and names not in _step_names(order["shape"], has_ended_well=flow.state == "succeeded"):
            yield f"{flow.id} has the steps {dict(names)}, its order is a {order['shape']}"
        if flow.state not in TERMINAL:
            continue
        states = {step.state for step in steps}
        if (flow.state == "succeeded") != (states == {"succeeded"}):
            yield f"{flow.id} is {flow.state}, its steps are {', '.join(sorted(states))}"
        for step in steps:
            # A deadline ends the flow first, and its steps in the same transaction.
            if step.state == "expired" and flow.state == "expired":
                continue
            if step.completed_at and flow.completed_at and flow.completed_at < step.completed_at - SLACK_S:
                yield f"{flow.id} ended {step.completed_at - flow.completed_at:.3f} s before its step {step.step}"
    step_ids = {step.id for step in history.steps}
    yield from (f"{one.job} is a step and has a webhook" for one in history.deliveries if one.job in step_ids)


def step_ends(history: History) -> Iterator[str]:
    """A step runs to its end once: no attempt begins after it, and the flow's timeline has it once."""
    attempts = _attempts(history)
    for step in history.steps:
        if step.state in TERMINAL and step.num_noted != 1:
            yield f"{step.id} ({step.step}) ended, and its flow has noted that {step.num_noted} times"
        ends = [one for one in attempts[step.id] if one.outcome in TERMINAL]
        if len(ends) > 1:
            yield f"{step.id} ({step.step}) was run to its end {len(ends)} times"
        for one in attempts[step.id]:
            if step.completed_at is not None and one.started_at > step.completed_at + SLACK_S:
                yield f"{step.id} ({step.step}) began attempt {one.epoch} after its end"


def step_order(history: History) -> Iterator[str]:
    """No step begins before all that it needs have succeeded."""
    attempts = _attempts(history)
    for _, steps in _flows(history):
        by_name = {step.step: step for step in steps}
        for step in steps:
            for needed in (by_name.get(name) for name in step.needs):
                if not attempts[step.id] or needed is None:
                    continue
                if needed.state != "succeeded" or needed.completed_at is None:
                    yield f"{step.id} ({step.step}) began, and {needed.step} is {needed.state}"
                elif attempts[step.id][0].started_at < needed.completed_at - SLACK_S:
                    yield f"{step.id} ({step.step}) began before {needed.step} had ended"


def flow_stops(history: History) -> Iterator[str]:
    """An ended flow has no open step, and no attempt of a step is open or began after the flow's end."""
    attempts = _attempts(history)
    for flow, steps in _flows(history):
        if flow.state not in TERMINAL:
            continue
        for step in steps:
            if step.state not in TERMINAL:
                yield f"{flow.id} is {flow.state}, its step {step.step} is {step.state}"
            for one in attempts[step.id]:
                if one.ended_at is None:
                    yield f"{flow.id} is {flow.state}, attempt {one.epoch} of its step {step.step} is open"
                if flow.completed_at is not None and one.started_at > flow.completed_at + SLACK_S:
                    yield f"{flow.id} is {flow.state}, attempt {one.epoch} of its step {step.step} began later"


def miscounted_flows(history: History) -> Iterator[str]:
    """A flow has the usage of its steps together, and the ledger counts that with the steps only."""
    for flow, steps in _flows(history):
        used = [step.used for step in steps if step.used is not None]
        total = (sum(one[0] for one in used), sum(one[1] for one in used)) if used else None
        if flow.state in TERMINAL and flow.used != total:
            yield f"{flow.id} used {flow.used}, its steps {total}"
        if flow.billed not in (None, (0, 0)):
            yield f"{flow.id} is a flow, and the ledger says {flow.billed}"


def wrong_flows(history: History) -> Iterator[str]:
    """The text of each step follows from the order: the whole for a success, a prefix for a stopped one."""
    orders = _orders(history)
    for flow, steps in _flows(history):
        if (order := orders.get(flow.prompt)) is None:
            continue
        expected = _expected(order, steps)
        last = [*expected][-1]
        for name, row in [(last, flow), *((step.step or "", step) for step in steps)]:
            text = expected.get(name, "")
            if row.state == "succeeded" and row.text != text:
                yield f"{row.id} ({name}): the output is not the step's"
            elif row.text and not any(one.startswith(row.text) for one in _partial(order, name, expected, row)):
                yield f"{row.id} ({name}, {row.state}): the partial output is not the step's"


def tool_keys(history: History) -> Iterator[str]:
    """A tool is called under the id of the step alone, at each attempt, and a result has a call behind it."""
    steps = {step.id: step for step in history.steps if step.is_call}
    for call in history.calls:
        if call["key"] not in steps:
            yield f"the tool was called under {call['key']!r}, which is no call's step"
        elif call["body"] != "{}":
            yield f"{call['key']} called the tool with {call['body'][:40]!r}"
    called = {call["key"] for call in history.calls}
    for step in steps.values():
        if step.state == "succeeded" and step.id not in called:
            yield f"{step.id} has a result, and the tool was not called"


def num_called(history: History) -> int:
    """Count the chats that succeeded with the result of a tool."""
    called = {step.parent for step in history.steps if step.is_call}
    return sum(job.state == "succeeded" and job.id in called for job in history.jobs)


def _step_names(shape: str, *, has_ended_well: bool) -> Sequence[Counter[str]]:
    """Return the steps that a flow may have. The end of a chat's first answer brings the others."""
    if shape != SHAPE:
        return [Counter(step.name for step in SHAPES[shape])]
    return [Counter(STEPS)] if has_ended_well else [Counter(STEPS), Counter(STEPS[:1])]


def _partial(order: Json, name: str, expected: Mapping[str, str], row: Job) -> Sequence[str]:
    """Return the texts of which a stopped job may have a part. Of a chat the first answer may be all that there is."""
    return [*expected.values()] if row.is_flow and order["shape"] == SHAPE else [expected.get(name, "")]


def _expected(order: Json, steps: Sequence[Job]) -> dict[str, str]:
    """Return the answer of each step, the last one that of the flow."""
    if order["shape"] == SHAPE:
        call_id = next((step.id for step in steps if step.is_call), None)
        return tool_answers(order["prompt"], order["max_tokens"], call_id)
    return answers(order["shape"], order["prompt"], order["max_tokens"], ends=not order["is_endless"])


def _flows(history: History) -> Iterator[tuple[Job, Sequence[Job]]]:
    """Yield each flow with its steps."""
    steps: dict[str | None, list[Job]] = defaultdict(list)
    for step in history.steps:
        steps[step.parent].append(step)
    yield from ((job, steps[job.id]) for job in history.jobs if job.is_flow)


def _attempts(history: History) -> Mapping[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = defaultdict(list)
    for one in sorted(history.attempts, key=lambda one: one.epoch):
        found[one.job].append(one)
    return found


def _orders(history: History) -> dict[str, Json]:
    return {event["prompt"]: event for event in history.of_client("order") if event.get("shape") is not None}
