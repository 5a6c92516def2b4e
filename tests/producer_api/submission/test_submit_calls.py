"""A submission from the request to the receipt, with the reads before it, without services."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.flows import pipelines
from headrace.features.flows.pipelines import from_pipeline
from headrace.features.responses.new_response import NewResponse
from headrace.features.rollouts.rollouts import RolloutMode
from headrace.producer_api.access.rate_limits import begin_headers
from headrace.producer_api.submission import placeholders_before
from headrace.producer_api.submission.draft_job import Receipt
from headrace.producer_api.submission.prompt_preparation import PromptPreparation
from headrace.store.jobs.jobs import Accepted
from headrace.store.registry.prompt_templates import Kind, PromptVersion
from headrace.store.tasks.flow import PipelineRequest
from tests.producer_api.submission.test_making_jobs import (
    AT,
    PRINCIPAL,
    SETTINGS,
    VERSION,
    Parts,
    origin,
    request,
    submissions,
)
from tests.refusals import Naming
from tests.stand_ins import stand_in

LIMITS = {"x-ratelimit-limit-requests": "1"}, {"x-ratelimit-limit-tokens": "2"}


class Accepting(Parts):
    """Parts that store jobs: ``outcome`` is that of each."""

    def __init__(self, **changes: Any) -> None:
        self.stored: list[Any] = []
        self.with_deadline: list[Any] = []
        self.tokens: list[int] = []
        self.outcome: Any = None

        def accept(job: Any, _store: object, *, has_deadline: bool) -> Any:
            self.stored.append(job)
            self.with_deadline += [job.id] if has_deadline else []
            return self.outcome or Accepted(job.id, replayed=False, announced=False)

        def spend_tokens(_principal: object, number: int) -> Any:
            self.tokens.append(number)
            return LIMITS[1]

        super().__init__(
            rate_limits=SimpleNamespace(
                held_by=lambda principal: None,
                spend_request=lambda principal: LIMITS[0],
                spend_tokens=spend_tokens,
            ),
            queue_limits=SimpleNamespace(accept=accept),
            enqueuer=SimpleNamespace(accept=None),
            **changes,
        )


async def test_a_request_becomes_a_job_and_its_caller_is_told() -> None:
    parts = Accepting(unserved={"tiny@3"})
    noted = begin_headers()
    receipt = await submissions(parts).submit(PRINCIPAL, request(deadline_ms=5), origin())
    (job,) = parts.stored
    headers = {**LIMITS[0], **LIMITS[1], "Headrace-Warning": Naming("tiny@3")}
    assert (receipt, noted) == (Receipt(job.id, False, headers), headers)
    assert (parts.tokens, parts.with_deadline) == ([5], [job.id])
    assert job.idempotency == parts.digests.idempotency("r", "k", request(deadline_ms=5), None)
    assert job.fingerprint == parts.digests.fingerprints("f")[0]
    read = parts.metrics.registry.get_sample_value
    labels = {"model": "tiny", "version": "3", "task": "generate", "class": "standard"}
    assert read("headrace_jobs_accepted_total", labels | {"replayed": "false"}) == 1
    parts.outcome = Accepted("job_0", replayed=True, announced=False)
    again = await submissions(parts).submit(PRINCIPAL, request(), origin())
    replayed = {**LIMITS[0], **LIMITS[1], "Idempotent-Replayed": "true"}
    assert (again.job_id, again.replayed, again.headers) == ("job_0", True, replayed)
    assert parts.with_deadline == [job.id], "the default deadline is not the caller's"


# The reads before a submission.


def test_placeholders_are_those_of_the_response_before(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"policy": {"vault": {"values": {"<EMAIL_1>": "ann@example.com"}}}}
    rows = {"job_1": values, "job_2": {}}

    def many(_db: object, tenant_id: str, ids: list[str]) -> list[Any]:
        assert tenant_id == "acme"
        return [SimpleNamespace(payload=rows[one]) for one in ids if one in rows]

    monkeypatch.setattr(placeholders_before, "jobs", SimpleNamespace(get_many=many))
    nothing: Any = None

    def before(response: NewResponse | None) -> Mapping[str, Any] | None:
        return placeholders_before.placeholders_before(nothing, "acme", response)

    alone = NewResponse(None, True, False, [], {})
    expected = values["policy"]["vault"]
    without = (None, alone, replace(alone, job_before="job_2"), replace(alone, job_before="job_9"))
    assert [before(one) for one in without] == [None] * 4
    assert before(replace(alone, job_before="job_1")) == expected


PIPELINE = {"steps": [{"name": "only", "model": "tiny", "input": {"prompt": "x"}}]}


@pytest.mark.parametrize(
    ("found", "mode", "takes", "version", "rollout_id", "is_mirrored"),
    [
        (1, None, True, 1, None, False),
        (1, RolloutMode.CANARY, False, 1, "rollout_1", False),
        (1, RolloutMode.CANARY, True, 2, "rollout_1", False),
        (1, RolloutMode.SHADOW, False, 1, "rollout_1", True),
        (3, RolloutMode.CANARY, True, 3, None, False),
    ],
)
def test_a_pipeline_s_rollout_divides_jobs_of_its_stable_version(
    monkeypatch: pytest.MonkeyPatch,
    found: int,
    mode: RolloutMode | None,
    takes: bool,
    version: int,
    rollout_id: str | None,
    is_mirrored: bool,
) -> None:
    asked: list[Any] = []

    def versions(number: int) -> PromptVersion:
        return PromptVersion("pipe_1", "mine", number, PIPELINE, AT)

    def choose(_db: object, tenant_id: str, name: str, kind: Kind, point: Any) -> PromptVersion:
        asked.append((tenant_id, name, kind))
        return versions(found)

    store = SimpleNamespace(
        choose=choose, DEFAULT="default", get=lambda db, tenant, name, number, kind: versions(number)
    )
    rollout = (
        None if mode is None else SimpleNamespace(id="rollout_1", stable_version=1, candidate_version=2, mode=mode)
    )

    def active(_db: object, pipeline_id: str, alias: str) -> Any:
        asked.append((pipeline_id, alias))
        return rollout

    def takes_candidate(_rollout: object, tenant_id: str, user: object, conversation: object, *, draw: str) -> bool:
        asked.append((tenant_id, user, conversation, draw))
        return takes

    monkeypatch.setattr(pipelines, "prompt_templates", store)
    monkeypatch.setattr(pipelines, "active_rollout", active)
    monkeypatch.setattr(pipelines, "takes_candidate", takes_candidate)
    parts: Any = SimpleNamespace(db=None)
    for name, alias in (("mine", "default"), ("mine@stable", "stable")):
        asked.clear()
        sent = PipelineRequest.model_validate({"pipeline": name, "user": "u"})
        used = from_pipeline(parts, PRINCIPAL, sent, origin())
        assert (used.version.version, used.rollout_id, used.is_mirrored) == (version, rollout_id, is_mirrored)
        assert asked[:2] == [("acme", name, Kind.PIPELINE), ("pipe_1", alias)]
        assert asked[2:] == ([] if rollout_id is None else [("acme", None, None, "u")])
    asked.clear()
    from_pipeline(parts, PRINCIPAL, PipelineRequest.model_validate({"pipeline": "mine"}), origin(idempotency_key="k"))
    assert asked[2:] in ([], [("acme", None, None, "k")])


def test_a_short_text_is_neither_cut_nor_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[int] = []

    class Inputs:
        def cut_to_length(self, asked: Any, model: Any) -> Any:
            cut.append(model.window)
            return "shorter"

        def is_quick(self, asked: Any, model: Any) -> bool:
            return True

    monkeypatch.setattr("headrace.producer_api.submission.prompt_preparation.TASK_INPUTS", {"generate": Inputs()})
    nothing: Any = None
    serving = stand_in(serving=lambda queue: stand_in(capacity=100))
    preparation = PromptPreparation(nothing, serving, SETTINGS, nothing, nothing)
    around = len(request(input={"prompt": "x"}).model_dump_json(include={"input"})) - 1
    fits, over = (request(input={"prompt": "x" * (400 - around + more)}) for more in (0, 1))
    assert preparation.cut_to_length(fits, VERSION) is fits
    assert (preparation.cut_to_length(over, VERSION), cut) == ("shorter", [100])
    wider = PromptPreparation(nothing, stand_in(serving=lambda queue: None), SETTINGS, nothing, nothing)
    assert (wider.cut_to_length(request(input={"prompt": "x" * 4000}), VERSION), cut[-1]) == ("shorter", 512)
    short = request(input={"prompt": "x" * 1000})
    assert wider.cut_to_length(short, VERSION) is short
    assert wider.is_quick(request(), VERSION)
