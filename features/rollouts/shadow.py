"""Shadow mode: copies of the alias's ended jobs run on the candidate, and the answers are compared.

A copy (a *mirror*) is a job of its own, of the tenant that the operator has set aside for it (``shadow_tenant``). So it
uses no limit of the caller, costs the caller nothing, stands in none of the caller's lists, calls no webhook, and is
encrypted like any job. It is made after the stable job has ended, so it delays no acceptance. It has the class batch,
must end within ten minutes, and its contents are erased a minute later, whatever the retention of the caller is.

Only greedy text answers are mirrored, of tenants that the operator names, without a policy, and only if their caller
lets them be stored. Of a pipeline the API makes the mirrors (``features.flows.pipeline_mirrors``), because only
it prepares the candidate's steps; the pairs are read here.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, RowMapping, text

from headrace.features.rollouts.bounds import Bounds
from headrace.features.rollouts.evidence import Evidence, outcome_of
from headrace.features.rollouts.matched_pairs import JobPair, PairedJobs
from headrace.features.rollouts.rollouts import Rollout, RolloutKind
from headrace.features.rollouts.routing import point_of
from headrace.store.db.database import Database
from headrace.store.errors import CannotOpen, HeadraceError, InvalidRequest
from headrace.store.ids import new_id
from headrace.store.jobs.acceptance import Accepted, Idempotency, NewJob, accept
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.registry.models import queue_name
from headrace.store.schema.job_states import FLOW_TASK
from headrace.store.seal import Seal, open_job

EVERY_TENANT = "*"

MakeMirror = Callable[[Mapping[str, Any]], NewJob | None]
"""Returns the mirror of a job for its row, whose payload is opened; None if it gets none."""

_ROUTE = "shadow"
_MOST_LOOKED_AT = 1000
MOST_PER_TURN = 50
MOST_WAITING = 200
_DEADLINE_S = 600.0
_LOWEST_PRIORITY = 9

# The stable jobs that have ended since a time, the first to end first. A second later no earlier end can be committed.
# Under a load of which only a part can be looked at, those that ended a minute ago are left out.
_ENDED = f"""
SELECT id, tenant_id, completed_at
FROM jobs
WHERE rollout_id = :rollout AND {{column}} = :version
    AND completed_at > GREATEST(CAST(:after AS timestamptz), clock_timestamp() - interval '1 minute')
    AND completed_at < clock_timestamp() - interval '1 second'
    AND state = 'succeeded' AND task = :task AND NOT purge_when_ended AND cache_source IS NULL
ORDER BY completed_at LIMIT {_MOST_LOOKED_AT}
"""
_ENDED_OF = {kind: text(_ENDED.format(column=kind.column)) for kind in RolloutKind}
_TASK_OF = {RolloutKind.MODEL: "generate", RolloutKind.PIPELINE: FLOW_TASK}

_CONTENTS = text("""
SELECT id, tenant_id, task, payload, input_tokens, cost_tokens FROM jobs
WHERE id = ANY(CAST(:ids AS text[])) AND input_purged_at IS NULL AND output_purged_at IS NULL
ORDER BY id
""")

_TENANT = text("SELECT id FROM tenants WHERE id = :id")

# Mirrors that wait, counted up to the limit.
_WAITING = text(f"""
SELECT count(*) FROM (
    SELECT FROM jobs WHERE rollout_id = :rollout AND state = 'queued' AND tenant_id = :tenant LIMIT {MOST_WAITING}
) AS waiting
""")

# The mirrors that have ended since a time, each with the stable job that it copies. Its idempotency key names that job.
_PAIRS = f"""
SELECT mirror.id, mirror.tenant_id, mirror.class_rank, mirror.input_tokens, mirror.state, mirror.usage, mirror.output,
    mirror.error ->> 'code' AS code, mirror.completed_at, link.key AS original_id
FROM jobs AS mirror
JOIN idempotency_keys AS link ON link.job_id = mirror.id AND link.route = '{_ROUTE}'
WHERE mirror.rollout_id = :rollout AND mirror.{{column}} = :version AND mirror.completed_at > :after
    AND mirror.completed_at < clock_timestamp() - interval '1 second'
ORDER BY mirror.completed_at LIMIT {MOST_PER_TURN}
"""
_PAIRS_OF = {kind: text(_PAIRS.format(column=kind.column)) for kind in RolloutKind}

_ORIGINALS = text("""
SELECT id, tenant_id, class_rank, input_tokens, state, usage, output, error ->> 'code' AS code, completed_at
FROM jobs WHERE id = ANY(CAST(:ids AS text[]))
""")


def check_shadow(db: Database, shadow_tenant: str, sources: Collection[str]) -> None:
    """Raise InvalidRequest unless the settings allow shadow mode, and the tenant of the mirrors exists."""
    if not shadow_tenant or not sources:
        raise InvalidRequest(
            "shadow mode needs HEADRACE_SHADOW_TENANT, the id of a tenant that owns the copies, and "
            "HEADRACE_SHADOW_SOURCES, the ids of the tenants whose jobs may be copied",
            param="mode",
        )
    with db.autocommit(tenant_id=shadow_tenant) as connection:
        if connection.execute(_TENANT, {"id": shadow_tenant}).first() is None:
            raise InvalidRequest(
                f"HEADRACE_SHADOW_TENANT: there is no tenant with the id {shadow_tenant}", param="mode"
            )


def look(db: Database, rollout: Rollout, shadow_tenant: str, sources: Collection[str]) -> Evidence:
    """Return the evidence with the mirrors that have ended since the last look, and make the next mirrors.

    It is what ``features.rollouts.evidence.read_evidence`` is for a canary. ``sources``: ids of tenants, or ``*``.
    """
    evidence = Evidence.from_json(rollout.evidence.get("counts"))
    with db.autocommit() as connection:
        pairs = read_shadow_pairs(connection, db.seal, rollout, evidence)
    evidence.num_candidate += len(pairs.own)
    evidence.num_stable += len(pairs.own)
    evidence.add(pairs, Bounds.model_validate(rollout.bounds))
    if rollout.kind is RolloutKind.MODEL:
        mirror(db, rollout, evidence, shadow_tenant, sources, lambda row: _mirror_of(rollout, row, shadow_tenant))
    return evidence


def mirror(
    db: Database,
    rollout: Rollout,
    evidence: Evidence,
    shadow_tenant: str,
    sources: Collection[str],
    make: MakeMirror,
    *,
    tenant_ids: Collection[str] = (),
) -> int:
    """Accept mirrors of stable jobs that have ended, and advance ``evidence.mirrored_until``. Returns their number.

    A repeated call makes no second mirror of a job. Nothing is mirrored while many mirrors wait. ``tenant_ids``: the
    tenants whose jobs an API process may see here; a dispatcher sees all.
    """
    named = {
        "rollout": rollout.id,
        "tenant": shadow_tenant,
        "version": rollout.stable_version,
        "task": _TASK_OF[rollout.kind],
    }
    with db.autocommit(tenant_ids=tenant_ids) as connection:
        if connection.execute(_WAITING, named).scalar_one() >= MOST_WAITING:
            return 0
        after = evidence.mirrored_until or rollout.started_at
        ended = connection.execute(_ENDED_OF[rollout.kind], {**named, "after": after}).all()
        chosen = [row for row in ended if _is_chosen(rollout, row, sources)][:MOST_PER_TURN]
        rows = connection.execute(_CONTENTS, {"ids": [row.id for row in chosen]}).mappings().all() if chosen else ()
    mirrors = [copy for row in rows if (copy := _made(db.seal, row, make)) is not None]
    outcomes = accept(db, mirrors) if mirrors else []
    for outcome in outcomes:
        if isinstance(outcome, HeadraceError):
            raise outcome
    if ended:
        last = chosen[-1] if len(chosen) == MOST_PER_TURN else ended[-1]
        evidence.mirrored_until = last.completed_at
    return sum(isinstance(outcome, Accepted) and not outcome.replayed for outcome in outcomes)


def read_shadow_pairs(connection: Connection, seal: Seal, rollout: Rollout, evidence: Evidence) -> PairedJobs:
    """Return the mirrors that have ended with their originals, and advance ``evidence.read_until``."""
    after = evidence.read_until or rollout.started_at
    values = {"rollout": rollout.id, "version": rollout.candidate_version, "after": after}
    mirrors = connection.execute(_PAIRS_OF[rollout.kind], values).mappings().all()
    if not mirrors:
        return PairedJobs()
    evidence.read_until = mirrors[-1]["completed_at"]
    ids = [row["original_id"] for row in mirrors]
    originals = {row["id"]: row for row in connection.execute(_ORIGINALS, {"ids": ids}).mappings()}
    # Steps of two versions of a pipeline are not meant to say the same, and they may sample.
    with_answers = rollout.kind is RolloutKind.MODEL
    pairs = [
        _pair(seal, row, originals[row["original_id"]], with_answers=with_answers)
        for row in mirrors
        if row["original_id"] in originals
    ]
    return PairedJobs(own=pairs)


def agreement(one: str, other: str) -> float:
    """Return the share of the longer text that both begin with, in words and signs; 1 for two empty texts."""
    first, second = _words(one), _words(other)
    longest = max(len(first), len(second))
    differs = (row for row, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differs, min(len(first), len(second))) / longest if longest else 1.0


def _words(answer: str) -> Sequence[str]:
    return re.findall(r"\w+|[^\w\s]", answer)


def _is_chosen(rollout: Rollout, row: Row[Any], sources: Collection[str]) -> bool:
    """Return True if the caller's tenant permits a mirror, and the job is in the rollout's share of jobs."""
    is_permitted = EVERY_TENANT in sources or row.tenant_id in sources
    return is_permitted and point_of(rollout.id, row.id) < rollout.percent


def _made(seal: Seal, row: RowMapping, make: MakeMirror) -> NewJob | None:
    """Return the mirror of a job; None if it gets none, or its contents cannot be read."""
    try:
        opened = open_job(seal, row)
    except CannotOpen:
        return None
    return make(opened)


def _mirror_of(rollout: Rollout, row: Mapping[str, Any], shadow_tenant: str) -> NewJob | None:
    """Return the mirror of a job of a model; None if its answers could not be compared."""
    payload: Mapping[str, Any] = row["payload"]
    version_specific = ("policy", "n", "tool_style", "answer_shape", "reasoning")
    is_greedy = payload["sampling"].get("temperature", 1.0) == 0
    if not is_greedy or payload["input"].get("prompts") or any(payload.get(name) for name in version_specific):
        return None
    copy = NewJob(
        id=new_id("job"),
        task=row["task"],
        model=rollout.model,
        model_version=rollout.candidate_version,
        queue=queue_name(rollout.model, rollout.candidate_version),
        payload=dict(payload),
        input_tokens=row["input_tokens"],
        cost_tokens=row["cost_tokens"],
        metadata={},
        idempotency=None,
        **_terms(shadow_tenant),
    )
    return as_mirror(copy, rollout, row["id"], shadow_tenant)


def as_mirror(copy: NewJob, rollout: Rollout, original_id: str, shadow_tenant: str) -> NewJob:
    """Return a copy of a job, with its steps, as a mirror: owned, counted, ended and erased as all mirrors are."""
    terms = _terms(shadow_tenant)
    return replace(
        copy,
        **terms,
        idempotency=Idempotency(_ROUTE, original_id, rollout.id),
        fingerprint=None,
        limits=None,
        rollout_id=rollout.id,
        is_stored=False,
        # A later step needs the output of an earlier one: the steps are erased with their job.
        steps=tuple(replace(step, **terms) for step in copy.steps),
    )


def _terms(shadow_tenant: str) -> dict[str, Any]:
    """Return what a mirror and each of its steps have whatever they copy."""
    return {
        "tenant_id": shadow_tenant,
        "service_class": ServiceClass.BATCH,
        "priority": _LOWEST_PRIORITY,
        # No events: its end is told to no endpoint.
        "webhook": {"events": []},
        "max_attempts": 2,
        "deadline_s": _DEADLINE_S,
        "announce": False,
        "api_key_id": None,
        "project_id": None,
        "user_id": None,
    }


def _pair(seal: Seal, candidate: RowMapping, stable: RowMapping, *, with_answers: bool) -> JobPair:
    """Return a mirror and its original. Times are not compared: the two ran in different classes."""
    answers = [_answer(seal, row) if with_answers else None for row in (candidate, stable)]
    disagreement = None if None in answers else 1 - agreement(*map(str, answers))
    return JobPair(
        outcome_of(candidate, disagreement=disagreement, has_times=False),
        outcome_of(stable, disagreement=None if disagreement is None else 0.0, has_times=False),
    )


def _answer(seal: Seal, row: RowMapping) -> str | None:
    """Return the text of a job that has succeeded; None if there is none, or it was erased."""
    try:
        output = open_job(seal, {"id": row["id"], "tenant_id": row["tenant_id"], "output": row["output"]})["output"]
    except CannotOpen:
        return None
    answer = (output or {}).get("text")
    return answer if isinstance(answer, str) else None
