"""Rollouts of a pipeline while the dispatcher and an API are killed around each stored change.

Each job keeps the version of its acceptance, and each change happens once. With ``--full`` every change is
killed before its commit and after it.
"""

from collections import Counter
from typing import Any

import pytest

from headrace.features.rollouts.evidence import Evidence
from headrace.features.rollouts.judge import Bounds
from headrace.features.rollouts.matched_pairs import JobOutcome, JobPair, PairedJobs
from headrace.store.json_text import dump_json
from tests.processes import wait_for
from tests.reliability.client import Client
from tests.reliability.jobs import check_ended_once
from tests.reliability.rig import Stack
from tests.reliability.test_batches import in_turn

MODEL = "staged"
PIPELINE = "/v1/pipelines/digest"
OF_A_SIDE = 2
MOST_USERS = 60
"""More than chance needs to put two of them on each side."""

WIDE: dict[str, float] = dict.fromkeys(("first_token", "token_time", "longer_answers", "shorter_answers"), 10)
"""What keeps a promotion from waiting for a decision on jobs whose times the faults lengthen."""

BEFORE, AFTER = "rollout.before_commit=kill", "rollout.committed=kill"
NUM_STEPS = {1: 1, 2: 2, 3: 3}
"""The steps of each version of the pipeline."""

Json = dict[str, Any]
Told = dict[str, tuple[str, int]]
"""The job of each user, with the version that the answer of its acceptance named."""


def steps(count: int) -> list[Json]:
    """Steps of a version, each with the text of the one before."""
    names = [f"step{number}" for number in range(count)]
    sources = ["input.text", *(f"{name}.output.text" for name in names)]
    return [
        {
            "name": name,
            "model": MODEL,
            "needs": names[:number][-1:],
            "input": {"prompt": {"$from": sources[number]}},
            "sampling": {"max_tokens": 6, "temperature": 0, "ignore_eos": True},
        }
        for number, name in enumerate(names)
    ]


def make_versions(client: Client, *aliases: str) -> None:
    """Make the pipeline with its versions; the aliases name the first one."""
    first, *others = NUM_STEPS.values()
    assert client.insist("POST", "/v1/pipelines", json={"name": "digest", "steps": steps(first)}).status_code == 201
    for count in others:
        assert client.insist("POST", f"{PIPELINE}/versions", json={"steps": steps(count)}).status_code == 201
    for alias in aliases:
        named = client.insist("PUT", f"{PIPELINE}/aliases/{alias}", json={"version": 1})
        assert named.status_code == 200, named.text


def start(client: Client, alias: str, version: int, bounds: dict[str, float] | None = None, **step: int) -> str:
    """Start a rollout of an alias with one step; return its id."""
    body = {"alias": alias, "version": version, "steps": [{"percent": 50, **step}], "bounds": bounds or {}}
    started = client.insist("POST", f"{PIPELINE}/rollouts", json=body)
    assert started.status_code == 201, started.text
    return str(started.json()["id"])


def submit(client: Client, alias: str, user: str) -> tuple[str, int]:
    """Submit the job of a user until it is accepted; return its id and the version that was told."""
    body = {"pipeline": f"digest@{alias}", "input": {"text": f"story of {user}"}, "user": user}
    sent = client.insist("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": f"{alias} {user}"})
    assert sent.status_code == 202, sent.text
    return str(sent.json()["id"]), int(sent.json()["pipeline"]["version"])


def submit_until_divided(client: Client, alias: str) -> Told:
    """Submit jobs of one user after the other until each side of the rollout has some."""
    told: Told = {}
    for number in range(MOST_USERS):
        user = f"user {number}"
        told[user] = submit(client, alias, user)
        sides = Counter(version for _, version in told.values())
        if len(sides) == 2 and min(sides.values()) >= OF_A_SIDE:
            return told
    raise AssertionError(f"the rollout of {alias} does not divide its users: {told}")


def store_bad_evidence(stack: Stack, rollout: str) -> None:
    """Store what an earlier look of the judge has found: many errors of the candidate."""
    good = JobOutcome(stack.tenant_id)
    bad = JobOutcome(stack.tenant_id, has_succeeded=False, error_code="engine_error")
    evidence = Evidence()
    evidence.add(PairedJobs(own=[JobPair(bad, good)] * 100), Bounds())
    counts = dump_json({"counts": evidence.as_json()})
    stack.query("UPDATE rollouts SET evidence = :counts WHERE id = :id RETURNING id", counts=counts, id=rollout)


def changes_of(stack: Stack, rollout: str) -> list[tuple[str, str]]:
    """The entries of the audit log about a rollout, and who made them."""
    found = stack.query("SELECT action, actor FROM audit_log WHERE resource = :id ORDER BY id", id=rollout)
    return [(row.action.removeprefix("rollout."), row.actor.partition("_")[0]) for row in found]


# test_rollouts has the rollout of a model in every run.
@pytest.mark.full
@pytest.mark.timeout(300)
def test_each_job_keeps_its_version_and_each_change_happens_once_whoever_is_killed(stack: Stack, is_full: bool) -> None:
    of_api, of_dispatcher = [AFTER], [f"{BEFORE}@2", AFTER]
    if is_full:
        of_api, of_dispatcher = ["accept.committed=kill@5", BEFORE, AFTER], [BEFORE, AFTER, BEFORE, AFTER]
    stack.register(MODEL)
    api, client = stack.api(arm=in_turn(*of_api))
    stack.worker(MODEL)
    make_versions(client, "good", "bad", "asked")
    rollouts = {
        "good": start(client, "good", 2, WIDE, min_jobs=OF_A_SIDE),
        "bad": start(client, "bad", 3, hold_s=3600),
        "asked": start(client, "asked", 2, hold_s=3600),
    }
    told = {alias: submit_until_divided(client, alias) for alias in rollouts}
    store_bad_evidence(stack, rollouts["bad"])
    dispatcher = stack.dispatcher(arm=in_turn(*of_dispatcher))
    last = client.insist("POST", f"{PIPELINE}/rollouts/{rollouts['asked']}/promote")
    ends = {alias: end_of(stack, rollout) for alias, rollout in rollouts.items()}
    ended = stack.wait_ended([job_id for jobs in told.values() for job_id, _ in jobs.values()])
    repeated = {alias: {user: submit(client, alias, user) for user in jobs} for alias, jobs in told.items()}
    assert repeated == told, "a repeated request keeps its version"
    check_versions(stack, told)
    assert {job.state for job in ended} == {"succeeded"}
    check_ended_once(stack, [row.id for row in stack.query("SELECT id FROM jobs WHERE parent_id IS NOT NULL")])
    assert ends == {"good": "promoted", "bad": "rolled_back", "asked": "promoted"}
    assert {alias: changes_of(stack, rollout) for alias, rollout in rollouts.items()} == {
        "good": [("started", "key"), ("promoted", "dispatcher")],
        "bad": [("started", "key"), ("rolled_back", "dispatcher")],
        "asked": [("started", "key"), ("promoted", "key")],
    }
    # The last try found the promotion of the try before, which had no answer.
    assert (last.status_code, last.json()["error"]["code"]) == (409, "rollout_ended")
    now = {alias: client.insist("GET", PIPELINE, params={"version": alias}).json()["version"] for alias in rollouts}
    assert now == {"good": 2, "bad": 1, "asked": 2}
    # The last change is stored a moment before its dispatcher dies.
    wait_for(lambda: len(dispatcher.exits) == len(of_dispatcher), lambda: f"each was killed: {dispatcher.exits}")
    assert len(api.exits) == len(of_api)
    client.close()


def end_of(stack: Stack, rollout: str) -> str:
    """Wait for the end of a rollout, and return it."""

    def state() -> str:
        (found,) = stack.query("SELECT state FROM rollouts WHERE id = :id", id=rollout)
        return str(found.state)

    wait_for(lambda: state() != "running", lambda: f"{rollout} ended: {state()}")
    return state()


def check_versions(stack: Stack, told: dict[str, Told]) -> None:
    """Each job has the version of its acceptance, and the steps of it."""
    rows = stack.query("""
        SELECT id, pipeline_version AS version, (SELECT count(*) FROM jobs AS step WHERE step.parent_id = jobs.id) AS n
        FROM jobs WHERE parent_id IS NULL
    """)
    assert {row.id: (row.version, row.n) for row in rows} == {
        job_id: (version, NUM_STEPS[version]) for jobs in told.values() for job_id, version in jobs.values()
    }
    candidates = {"good": 2, "bad": 3, "asked": 2}
    assert {alias: {version for _, version in jobs.values()} for alias, jobs in told.items()} == {
        alias: {1, candidate} for alias, candidate in candidates.items()
    }
