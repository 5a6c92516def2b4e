"""Fills in the input of a step whose references were not known when its job was accepted, and prepares it.

What the API does for a job of one step when it is accepted, the worker does here for such a step: it has the outputs of
the other steps, and the tokenizer of the model. A text that is too long now fails the step.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Any

from pydantic import ValidationError

from headrace.features.flows.running.added_steps import KINDS, AddSteps, with_added
from headrace.features.flows.running.passages import cited, in_context, is_search
from headrace.prompts.grammar import Grammars, grammars_for
from headrace.prompts.tasks.registry import TASK_INPUTS
from headrace.prompts.tokenizer import Tokenizer, sampling_defaults_for, tokenizer_for
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.jobs.flow_values import read_outputs
from headrace.store.payloads.job_payload import JobOrder, PinnedPolicy
from headrace.store.payloads.prompt_reference import PromptUse, TemplatePlace
from headrace.store.payloads.references import MAX_FILLED_CHARS, look_up_all, step_of
from headrace.store.payloads.retrieval import SEARCH_STEP, FileCitation
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.payloads.step_payload import (
    NUMBERED_FROM,
    PASSAGES,
    REFERENCES,
    SEARCH,
    TEMPLATE,
    TEMPLATE_PLACE,
    THEN,
    with_texts,
)
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tasks.registry import TASKS, is_from_outside
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.outcome import Retry
from headrace.workers.runs.output_guard import OF_CALLS, open_guards
from headrace.workers.runs.parent_work import Compute

_MOST_VERSIONS = 16
_OF_SEARCH = (SEARCH, NUMBERED_FROM)
_NOT_OF_TASK = (REFERENCES, TEMPLATE, TEMPLATE_PLACE, "policy", *_OF_SEARCH)


class _StepModel:
    """A model version as requests are prepared for it: an ``InputModel``. Its files are read when they are needed."""

    def __init__(self, version: ModelVersion, db: Database) -> None:
        self._version = version
        self._read_file = partial(models.read_file, db)
        self.context_window = self.window = version.context_window

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizer_for(self._version, self._read_file)

    @cached_property
    def grammars(self) -> Grammars:
        return grammars_for(self._version, self.tokenizer, self._read_file)

    @cached_property
    def sampling(self) -> SamplingDefaults:
        return sampling_defaults_for(self._version, self._read_file).under(self._version.sampling)

    @cached_property
    def settings(self) -> Any:
        return TASK_INPUTS[self._version.task].read_settings(self._version, self._read_file)

    def is_compiled(self, kind: str, text: str) -> bool:
        return self.grammars.is_compiled(kind, text)


class StepInputs:
    """Fills in steps. Called from many threads at once. ``most_chars``: of what the references of a step stand for."""

    def __init__(self, db: Database, *, most_chars: int = MAX_FILLED_CHARS) -> None:
        self._db = db
        self._most_chars = most_chars
        self._model = lru_cache(_MOST_VERSIONS)(self._read_model)
        self._guards = open_guards(db)

    def fill(self, claim: Claim) -> tuple[FileCitation, ...] | None:
        """Make the payload of the claim one that its task reads. Does nothing for a job that has such a payload.

        Return the passages that came into the prompt; None for a step without retrieval. Raises InvalidRequest if a
        reference names nothing or the input does not fit, ModelLoadError, Unavailable.
        """
        paths = claim.payload.get(REFERENCES)
        if paths is None or claim.parent_id is None:
            return None
        names = {name for path in paths.values() if (name := step_of(path)) is not None}
        searched = SEARCH_STEP.format(claim.step) if claim.payload.get("retrieval") else None
        names |= set() if searched is None else {searched}
        outputs = read_outputs(self._db, claim.tenant_id, claim.parent_id, names)
        found = look_up_all(outputs, paths.values(), self._most_chars)
        texts = {mark: found[path] for mark, path in paths.items()}
        policy = claim.payload.get("policy")
        pinned = None if policy is None else PinnedPolicy.model_validate(policy)
        outside = [mark for mark, path in paths.items() if _is_from_outside(outputs, path)]
        policed = None if pinned is None else partial(self._guards.texts, claim.tenant_id, pinned)
        if policed is not None and outside:
            given = [texts[mark] for mark in outside]
            seen = policed(given, "what another step returned", after=OF_CALLS)
            texts |= zip(outside, seen, strict=True)
        model = self._model(queue_name(claim.model, claim.model_version))
        request, citations = _request(claim, texts), cited(outputs)
        if searched is not None and isinstance(request, GenerateRequest):
            passages = outputs[searched]["output"][PASSAGES]
            request, citations = in_context(claim, request, passages, model, policed)
        prepared = TASK_INPUTS[claim.task].prepare(request, model, pinned)
        filled = prepared.payload.model_dump(mode="json", exclude_none=True)
        kept = {name: claim.payload[name] for name in _OF_SEARCH if name in claim.payload}
        claim.payload.clear()
        claim.payload.update(filled | kept)
        return citations

    def _read_model(self, name: str) -> _StepModel:
        return _StepModel(models.resolve(self._db, name, with_retired=True), self._db)


def _is_from_outside(outputs: Mapping[str, Any], path: str) -> bool:
    """True for a path into the output of a step that brings texts from outside, so no policy has seen them.

    Passages of files are such texts.
    """
    name = step_of(path)
    if name is None:
        return False
    return is_from_outside(outputs[name]["task"]) or is_search(outputs[name])


def _request(claim: Claim, texts: dict[str, str]) -> JobOrder:
    spec = TASKS[claim.task]
    own = {name: value for name, value in claim.payload.items() if name not in _NOT_OF_TASK}
    body = {**own, "task": claim.task, "model": claim.model, "input": with_texts(own["input"], texts)}
    try:
        request = spec.request.model_validate(body)
    except ValidationError as error:
        places = sorted({".".join(map(str, one["loc"])) for one in error.errors(include_input=False)})
        raise InvalidRequest(
            f"with the outputs of other steps the input is refused: {', '.join(places)[:300]}"
        ) from None
    if TEMPLATE not in claim.payload or not isinstance(request, GenerateRequest):
        return request
    place = TemplatePlace(**claim.payload[TEMPLATE_PLACE])
    return request.filled_in(request.input, PromptUse.model_validate(claim.payload[TEMPLATE]), place)


class FilledSteps:
    """Steps whose input is filled in before it is computed, and whose end may add steps.

    ``kinds``: what adds steps, by the kind that a payload names. ``most_steps``: of one job.
    """

    def __init__(self, inputs: StepInputs, *, most_steps: int, kinds: Mapping[str, AddSteps] = KINDS) -> None:
        self._inputs = inputs
        self._most_steps = most_steps
        self._kinds = kinds

    def compute(self, attempt: Attempt, compute: Compute) -> Finish | Retry:
        """As ``ParentWork.compute``. May raise what ``StepInputs.fill`` raises too."""
        claim = attempt.claim
        then = claim.payload.pop(THEN, None)
        stored = claim if then is None else replace(claim, payload=dict(claim.payload))
        citations = self._inputs.fill(claim)
        verdict = compute(attempt)
        if isinstance(verdict, Retry):
            return verdict
        if citations is not None and verdict.output is not None:
            annotations = [one.model_dump(mode="json", exclude_none=True) for one in citations]
            verdict = replace(verdict, output={**verdict.output, "annotations": annotations})
        if then is None:
            return verdict
        return with_added(stored, then, verdict, self._kinds, self._most_steps)
