"""Submits jobs of several steps: all steps are checked and stored with the job, or nothing is.

References to the job's input are filled in here. A step without other references is prepared here too, as every job is;
one with references to outputs is prepared by its worker (``running.step_inputs``), and its tokens are estimated
until then. Each step keeps the version that its model names now; a rollout's candidate gets no steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from headrace.features.cheap_hours.hours import read_hours
from headrace.features.flows.pipeline import Pipeline
from headrace.features.flows.pipelines import (
    UsedPipeline,
    at_place,
    check_pipeline,
    from_pipeline,
    of_pipeline,
)
from headrace.features.flows.prepared_step import (
    FORM,
    PreparedStep,
    filled_step,
    flow_payload,
    flow_row,
    new_step,
    turns_form,
    unprepared_payload,
)
from headrace.features.flows.retrieval_steps import as_flow, as_one, retrieval_of, search_step
from headrace.features.flows.tool_steps import (
    FIELD,
    check_tools,
    server_tools_of,
    with_answered_calls,
    with_tools,
)
from headrace.producer_api.access.rate_limits import WARNING_HEADER, note_headers
from headrace.producer_api.server.errors import from_validation
from headrace.producer_api.submission import unserved
from headrace.producer_api.submission.draft_job import Origin, Receipt
from headrace.producer_api.submission.placeholders_before import placeholders_before
from headrace.producer_api.submission.prompt_preparation import check_called_urls, check_task
from headrace.producer_api.submission.submission_hook import StepSubmissions, SubmissionParts
from headrace.producer_api.submission.text_guard import TextGuard
from headrace.prompts.sandbox.turns import Turns
from headrace.store.calls.addresses import check_url
from headrace.store.errors import InvalidRequest, NotFound, NoWorker, RequestError
from headrace.store.jobs import jobs
from headrace.store.jobs.face_row import FaceRow
from headrace.store.jobs.jobs import Idempotency, NewJob
from headrace.store.payloads.job_payload import JobTerms
from headrace.store.payloads.references import OF_INPUT, look_up_all, references, replaced, step_of
from headrace.store.payloads.retrieval import SEARCH_STEP
from headrace.store.payloads.step_payload import SEARCH, Marks
from headrace.store.registry.models import queue_name
from headrace.store.schema.job_states import FLOW_TASK
from headrace.store.schema.version_states import VersionState
from headrace.store.tasks.flow import FlowRequest, FlowStepBody, PipelineRequest, check_steps
from headrace.store.tasks.generate import GenerateRequest
from headrace.store.tasks.registry import TASKS, is_from_outside
from headrace.store.tenants.api_keys import Principal

RETRY_WITHIN_S = 600.0


# A tenant's server of MCP may be slow to tell its tools, so these threads are of their own.
_TOOL_THREADS = 4


class FlowSubmissions(StepSubmissions):
    """Submits jobs of several steps."""

    def __init__(self, parts: SubmissionParts) -> None:
        self.parts = parts
        self.tool_threads = Turns(_TOOL_THREADS, most_of_one=1)

    async def submit(
        self,
        principal: Principal,
        request: FlowRequest | PipelineRequest | GenerateRequest,
        origin: Origin,
        response: FaceRow | None = None,
    ) -> Receipt:
        """Store the job with its steps, which it brings or which a pipeline has, and ``response`` beside it.

        A request with ``retrieval`` or ``server_tools`` is one step, behind those that search, and behind the calls
        that the response answers.

        A job with a response has one step of the caller. Raises as ``Submissions.submit``, InvalidRequest for a wrong
        plan, NotFound for an unknown pipeline.
        """
        if isinstance(request, GenerateRequest):
            return await self._submit_one(principal, request, origin, response)
        headers: dict[str, str] = {}
        try:
            return await self.parts.tenant_threads.run(
                principal.tenant_id, lambda: self._submit(principal, request, origin, response, headers)
            )
        except NotFound:
            # What the request names may be gone since its key was accepted: the key still has its job.
            idempotency = self._idempotency(request, origin, response)
            if idempotency is None:
                raise
            found = await run_in_threadpool(jobs.job_of_key, self.parts.db, principal.tenant_id, idempotency)
            if found is None:
                raise
            headers["Idempotent-Replayed"] = "true"
            return Receipt(found, True, headers)
        finally:
            note_headers(headers)

    async def _submit_one(
        self, principal: Principal, request: GenerateRequest, origin: Origin, response: FaceRow | None
    ) -> Receipt:
        sent, answered = as_flow(request), () if response is None else response.answered_calls
        try:
            if answered:
                sent = await self.parts.tenant_threads.run(
                    principal.tenant_id, lambda: with_answered_calls(self.parts, principal, as_flow(request), answered)
                )
            return await self.submit(principal, sent, origin, response)
        except (RequestError, NoWorker) as error:
            raise as_one(error) from None

    async def check_pipeline(self, principal: Principal, pipeline: Pipeline) -> None:
        """Raise InvalidRequest, NotFound or Forbidden for a pipeline whose steps no input could make a job of."""
        await self.parts.tenant_threads.run(principal.tenant_id, lambda: self._check_pipeline(principal, pipeline))

    def _check_pipeline(self, principal: Principal, pipeline: Pipeline) -> None:
        check_pipeline(self.parts, principal, pipeline)
        for index, body in enumerate(pipeline.steps):
            place = f"steps[{index}]"
            with at_place(place):
                retrieval_of(body)
                server_tools_of(body)
                step = self._read(principal, None, body, place)
                check_task(step.request, step.version)

    def _submit(
        self,
        principal: Principal,
        sent: FlowRequest | PipelineRequest,
        origin: Origin,
        response: FaceRow | None,
        headers: dict[str, str],
    ) -> Receipt:
        headers |= self.parts.rate_limits.spend_request(principal)
        if isinstance(sent, FlowRequest):
            return self._submit_steps(principal, sent, origin, response, headers, None)
        used = from_pipeline(self.parts, principal, sent, origin)
        with of_pipeline():
            return self._submit_steps(principal, used.request, origin, None, headers, used)

    def _submit_steps(
        self,
        principal: Principal,
        request: FlowRequest,
        origin: Origin,
        response: FaceRow | None,
        headers: dict[str, str],
        used: UsedPipeline | None,
    ) -> Receipt:
        if request.webhook is not None:
            check_url(request.webhook.url, self.parts.settings)
        if (known := self._known(principal, origin)) is not None:
            return Receipt(known, True, headers | {"Idempotent-Replayed": "true"})
        flow, steps = self.make(principal, request, origin, response, used)
        headers |= self.parts.rate_limits.spend_tokens(principal, sum(step.input_tokens for step in steps))
        outcome = self.parts.queue_limits.accept(flow, self.parts.enqueuer.accept)
        self.parts.metrics.count_accepted(
            flow.model, flow.model_version, FLOW_TASK, request.service_class, replayed=outcome.replayed
        )
        if outcome.replayed:
            headers["Idempotent-Replayed"] = "true"
        else:
            self._warn(steps, headers)
        return Receipt(outcome.job_id, outcome.replayed, headers)

    def make(
        self,
        principal: Principal,
        request: FlowRequest,
        origin: Origin,
        response: FaceRow | None,
        used: UsedPipeline | None,
        models: Mapping[str, str] | None = None,
    ) -> tuple[NewJob, list[PreparedStep]]:
        """Return the job with its steps. No limit is checked and nothing is stored. Raises as ``submit``. Blocks.

        ``models``: the versions that model strings of the caller's own steps have here.
        """
        order, answer = check_steps(request.steps, self.parts.settings.max_steps)
        check_tools(request.steps, answer, self.parts.settings.max_steps)
        kept = models or ({} if used is None else used.models)
        steps = self._prepared(principal, request, order, response, kept)
        last = next(step for step in steps if step.body.name == answer.name)
        return self._new_flow(principal, request, origin, steps, last, used), steps

    def _warn(self, steps: Sequence[PreparedStep], headers: dict[str, str]) -> None:
        for step in steps:
            queue = queue_name(step.version.model, step.version.version)
            if self.parts.live_processes.is_unserved(queue):
                headers[WARNING_HEADER] = unserved.warning(step.version, self.parts.live_processes.outlook(queue))
                return

    def _known(self, principal: Principal, origin: Origin) -> str | None:
        """Return the job that a retry without an Idempotency-Key has made before."""
        if not origin.is_retry or origin.idempotency_key is not None:
            return None
        fingerprints = self.parts.digests.fingerprints(origin.fingerprint)
        return jobs.find_duplicate(self.parts.db, principal.tenant_id, fingerprints, RETRY_WITHIN_S)

    def _prepared(
        self,
        principal: Principal,
        request: FlowRequest,
        order: Sequence[FlowStepBody],
        response: FaceRow | None,
        models: Mapping[str, str],
    ) -> list[PreparedStep]:
        read = partial(self._read, principal, request, models=models)
        places = {step.name: f"steps[{index}]" for index, step in enumerate(request.steps)}
        tasks = {step.name: step.task for step in request.steps}
        steps: list[PreparedStep] = []
        before = placeholders_before(self.parts.db, principal.tenant_id, response)
        for body in order:
            place = places[body.name]
            with at_place(place):
                for step in self._read_with_search(principal, body, place, read, response):
                    step.response = response if body is order[-1] and step.search is None else None
                    before = self._guard(principal, step, before, tasks)
                    self._prepare(step, {earlier.body.name: earlier for earlier in steps})
                    steps.append(step)
        if len(steps) > self.parts.settings.max_steps:
            most = self.parts.settings.max_steps
            message = f"the job has {len(steps)} steps with those that search, and at most {most} are accepted"
            raise InvalidRequest(message, param="steps")
        return steps

    def _read_with_search(
        self,
        principal: Principal,
        body: FlowStepBody,
        place: str,
        read: Callable[[FlowStepBody, str], PreparedStep],
        response: FaceRow | None,
    ) -> Iterator[PreparedStep]:
        """Yield a step, behind the one that searches for it if it has ``retrieval``."""
        wanted, called = retrieval_of(body), server_tools_of(body)
        if called is not None:
            principal.check_model(body.model)
            # Another response can only go on from one that is stored.
            ends = response is not None and response.is_kept
            body, then = with_tools(self.parts, principal, body, called, ends=ends)
            step = read(body, place)
            step.then = then
            yield step
            return
        if wanted is None:
            yield read(body, place)
            return
        principal.check_model(body.model)
        needing = body.model_copy(update={"needs": (*body.needs, SEARCH_STEP.format(body.name))})
        answering = read(needing, place)
        answering.retrieval = wanted
        # Its question may be of a template, which is filled in now.
        searching = search_step(self.parts, principal.tenant_id, body, answering.request, wanted)
        step = read(searching, place)
        step.search = wanted
        yield step
        yield answering

    def _read(
        self,
        principal: Principal,
        request: FlowRequest | None,
        body: FlowStepBody,
        place: str,
        models: Mapping[str, str] | None = None,
    ) -> PreparedStep:
        """Return a step as a request of its task, with marks for the outputs that are not there yet.

        Without a request the job's input is not there either. ``models``: the versions that model strings have here.
        """
        principal.check_model(body.model)
        kept, catalog = (models or {}).get(body.model), self.parts.catalog
        version = catalog.resolve(body.model) if kept is None else catalog.pinned(kept)
        queue = queue_name(version.model, version.version)
        if version.state is VersionState.REJECTED:
            raise unserved.rejected(version)
        if self.parts.settings.require_worker and self.parts.live_processes.is_unserved(queue):
            refusal = unserved.refusal(queue, self.parts.live_processes.outlook(queue))
            if refusal is not None:
                raise refusal
        marks = Marks()
        texts: dict[str, str] = {}
        if request is not None:
            of_input = (path for path in references(body.input) if step_of(path) is None)
            texts = look_up_all({OF_INPUT: request.input}, of_input, self.parts.settings.max_body_bytes)

        def text_of(path: str) -> str:
            return texts[path] if path in texts else marks.mark(path)

        terms = {} if request is None else {"service_class": request.service_class, "priority": request.priority}
        sent = {**body.own_fields, **terms, "task": body.task, "model": body.model}
        try:
            made = TASKS[body.task].request.model_validate({**sent, "input": replaced(body.input, text_of)})
        except ValidationError as error:
            raise from_validation(error.errors(include_input=False)) from None
        made = filled_step(self.parts.templates, principal.tenant_id, body, made, marks, has_input=request is not None)
        check_called_urls(made, self.parts.settings, marks.paths)
        made = self.parts.preparation.with_files(principal.tenant_id, made)
        return PreparedStep(body, place, version, made, marks)

    def _guard(
        self, principal: Principal, step: PreparedStep, before: Mapping[str, Any] | None, tasks: Mapping[str, str]
    ) -> Mapping[str, Any] | None:
        """Apply the tenant's policy to a step. ``before``: the placeholders of the steps before it."""
        found = self.parts.guards.in_force(principal.tenant_id, step.version.model)
        if found is None:
            return before
        if step.then is not None and found.restores:
            message = "this tenant's policy puts values back, which would come into later prompts: leave the tools out"
            raise InvalidRequest(message, code="unsupported_parameter", param=FIELD)
        step.request = self.parts.preparation.cut_to_length(step.request, step.version)
        # Its worker applies the policy to passages, and to what calls return.
        reads_file = (
            step.retrieval is not None
            or step.then is not None
            or any(is_from_outside(tasks[name]) for name in step.referred)
        )
        done = found.request(step.request, step.response, before, reads_file=reads_file)
        step.request, step.response, step.guard, step.policy = done.request, done.response, found, done.policy
        return done.vault

    def _prepare(self, step: PreparedStep, earlier: Mapping[str, PreparedStep]) -> None:
        request = self.parts.templates.with_default(step.request, step.version)
        prepared = self.parts.preparation.prepare(request, step.version, step.policy)
        step.max_tokens = prepared.max_tokens
        step.input_tokens = prepared.num_tokens
        payload = prepared.payload.model_dump(mode="json", exclude_none=True)
        step.form = {name: payload[name] for name in FORM if name in payload} | turns_form(step, prepared.payload)
        searched = {} if step.search is None else {SEARCH: step.search.model_dump(mode="json", exclude_none=True)}
        if not step.marks.paths and step.retrieval is None and step.then is None:
            step.payload = payload | searched
            return
        if step.retrieval is not None:
            room = max(0, step.version.context_window - step.input_tokens - step.max_tokens)
            step.input_tokens += min(step.retrieval.max_context_tokens, room)
        step.input_tokens += sum(earlier[name].max_tokens for name in step.referred)
        step.payload = unprepared_payload(step, request) | searched

    def _new_flow(
        self,
        principal: Principal,
        request: FlowRequest,
        origin: Origin,
        steps: Sequence[PreparedStep],
        last: PreparedStep,
        used: UsedPipeline | None,
    ) -> NewJob:
        """Return the job with its steps. The policies of all steps see what the caller has named."""
        guards = [step.guard for step in steps if step.guard is not None]
        payload = flow_payload(request, steps, last)
        asked: JobTerms = request if used is None else used.asked
        if used is not None:
            payload |= used.payload_fields(has_policy=bool(guards))
        if guards and not self.parts.digests.is_keyed:
            # A plain digest of the sent text would let a reader of the database guess the replaced text.
            bodies = {} if used else {"steps": tuple(map(FlowStepBody.model_validate, payload["steps"]))}
            asked, origin = asked.model_copy(update={"input": {}, **bodies}), replace(origin, fingerprint="")
        response = last.response
        idempotency = self._idempotency(asked, origin, response)
        for guard in guards:
            request, origin, idempotency = self._guard_names(principal, guard, request, origin, idempotency)
        row = flow_row(self.parts.settings, principal, request, origin, last)
        row = read_hours(self.parts.settings.cheap_hours).place(row, request)
        flow = replace(row, payload=payload, idempotency=idempotency, response=response)
        made = {step.body.name: new_step(flow, step) for step in steps}
        names = [name for body in request.steps for name in (SEARCH_STEP.format(body.name), body.name)]
        return replace(
            flow,
            fingerprint=self.parts.digests.fingerprints(sent)[0] if (sent := origin.fingerprint) else None,
            limits=self.parts.rate_limits.held_by(principal),
            steps=tuple(made[name] for name in names if name in made),
            answer_id=made[last.body.name].id,
            **({} if used is None else used.columns),
        )

    def _idempotency(self, asked: JobTerms, origin: Origin, response: FaceRow | None) -> Idempotency | None:
        if isinstance(asked, FlowRequest) and response is not None and response.conversation is not None:
            # What the conversation has is no part of the request: it may be more when that is sent again.
            asked = asked.model_copy(
                update={"steps": tuple(body.model_copy(update={"input": {}}) for body in asked.steps)}
            )
        return self.parts.digests.idempotency(origin.route, origin.idempotency_key, asked, response)

    def _guard_names(
        self,
        principal: Principal,
        guard: TextGuard,
        request: FlowRequest,
        origin: Origin,
        idempotency: Idempotency | None,
    ) -> tuple[FlowRequest, Origin, Idempotency | None]:
        """Apply a policy to metadata, user, project and Idempotency-Key, as ``Submissions`` does."""
        changes: dict[str, Any] = guard.fields({"metadata": dict(request.metadata)}, "metadata")
        if request.user is not None:
            changes["user"] = guard.name(request.user, "user")
        if origin.project_id is not None:
            origin = replace(origin, project_id=guard.name(origin.project_id, "OpenAI-Project"))
        if idempotency is not None:
            sent = idempotency
            key = guard.key(
                sent.key, lambda key: jobs.is_known(self.parts.db, principal.tenant_id, replace(sent, key=key))
            )
            idempotency = replace(idempotency, key=key)
        return request.model_copy(update=changes), origin, idempotency
