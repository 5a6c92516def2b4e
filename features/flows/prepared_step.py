"""A step on its way to become a job, and what is stored of it and of its flow."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from headrace.features.flows.tool_steps import without_tools
from headrace.producer_api.submission.draft_job import Origin
from headrace.producer_api.submission.prompt_preparation import PromptTemplates
from headrace.producer_api.submission.text_guard import TextGuard
from headrace.store.errors import InvalidRequest
from headrace.store.ids import new_id
from headrace.store.jobs.face_row import FaceRow
from headrace.store.jobs.jobs import NewJob
from headrace.store.payloads.job_payload import JobOrder, PinnedPolicy
from headrace.store.payloads.references import MARK, step_of
from headrace.store.payloads.retrieval import Retrieval
from headrace.store.payloads.step_payload import REFERENCES, TEMPLATE, TEMPLATE_PLACE, THEN, Marks, with_references
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.schema.job_states import FLOW_TASK, UNSERVED_QUEUE
from headrace.store.settings import Settings
from headrace.store.tasks.flow import FlowRequest, FlowStepBody
from headrace.store.tasks.generate import GeneratePayload, GenerateRequest
from headrace.store.tasks.registry import JobRequest
from headrace.store.tasks.turn_form import CALLS, form_of
from headrace.store.tenants.api_keys import Principal

FORM = ("policy", "sampling", "tool_style", "reasoning", "template")
"""The fields of a payload that a reader of the answer needs: the form of calls and reasoning in its text, the values to
restore, and the prompt template."""


@dataclass(slots=True)
class PreparedStep:
    """A step on its way to become a job. ``place``: where the request has it.

    ``retrieval``: for whose prompt it has passages. ``search``: what it searches itself, for the step behind it.
    ``then``: what may follow its end.
    ``form``: the fields of its payload that a reader of its output needs, by what is known when it is accepted.
    ``response``: of the step that answers a request of the Responses API, the row that is stored with its job.
    """

    body: FlowStepBody
    place: str
    version: ModelVersion
    request: JobOrder
    marks: Marks
    guard: TextGuard | None = None
    policy: PinnedPolicy | None = None
    payload: Mapping[str, Any] | None = None
    input_tokens: int = 0
    max_tokens: int = 0
    retrieval: Retrieval | None = None
    search: Retrieval | None = None
    then: Mapping[str, Any] | None = None
    form: Mapping[str, Any] = field(default_factory=dict)
    response: FaceRow | None = None

    @property
    def referred(self) -> list[str]:
        """The steps whose outputs it refers to, one for each reference."""
        return [name for path in self.marks.paths.values() if (name := step_of(path)) is not None]


def filled_step(
    templates: PromptTemplates, tenant_id: str, body: FlowStepBody, made: JobRequest, marks: Marks, *, has_input: bool
) -> JobRequest:
    """Return the request of a step with the input that its prompt template makes, if it has one. Blocks.

    ``marks``: of its references that are not known yet. Without the job's input, which a template may test, it is not
    filled in. Raises as ``PromptTemplates.fill``, and InvalidRequest for a template with references to outputs.
    """
    if not isinstance(made, GenerateRequest):
        return made
    if body.filled_from is not None:
        return made.filled_in(made.input, *body.filled_from)
    if not made.has_template:
        return made
    if any(step_of(path) is not None for path in marks.paths.values()):
        raise InvalidRequest(
            "a step with a prompt template refers to the job's input only: its text is made now",
            param="input.template",
        )
    return templates.fill(tenant_id, made) if has_input else made


def flow_row(
    settings: Settings, principal: Principal, request: FlowRequest, origin: Origin, last: PreparedStep
) -> NewJob:
    """Return the job of a flow, without its payload and its steps. ``last``: the step with the answer."""
    default_s = settings.default_deadline_s
    return NewJob(
        id=new_id("job"),
        tenant_id=principal.tenant_id,
        task=FLOW_TASK,
        model=last.version.model,
        model_version=last.version.version,
        queue=UNSERVED_QUEUE,
        start_after=request.starts_at(),
        service_class=request.service_class,
        priority=request.priority,
        payload={},
        input_tokens=0,
        cost_tokens=0,
        metadata=request.metadata,
        webhook=None if request.webhook is None else request.webhook.model_dump(mode="json", exclude_none=True),
        max_attempts=request.max_attempts or settings.default_max_attempts,
        deadline_s=default_s if request.deadline_ms is None else request.deadline_ms / 1000,
        idempotency=None,
        announce=False,
        api_key_id=principal.key_id,
        project_id=origin.project_id,
        user_id=request.user,
    )


def new_step(flow: NewJob, step: PreparedStep) -> NewJob:
    """Return the job of a step of ``flow``."""
    version = step.version
    return replace(
        flow,
        id=new_id("job"),
        idempotency=None,
        response=None,
        task=step.body.task,
        model=version.model,
        model_version=version.version,
        model_digest=version.digest,
        # A step that waits for others, or for the time of its flow, is in no worker's queue.
        queue=UNSERVED_QUEUE if step.body.needs or flow.start_after else queue_name(version.model, version.version),
        # The others become ready by these.
        start_after=None if step.body.needs else flow.start_after,
        payload=dict(step.payload or {}),
        input_tokens=step.input_tokens,
        cost_tokens=step.input_tokens + step.max_tokens,
        metadata={},
        # Its end is no event for webhooks: that of the flow is.
        webhook={"events": []},
        parent_id=flow.id,
        step=step.body.name,
        needs=step.body.needs,
    )


def _own_fields(step: PreparedStep, request: JobRequest) -> dict[str, Any]:
    """Return the fields of the step's task in ``request``."""
    own = request.model_dump(mode="json", exclude_none=True)
    return {name: value for name, value in own.items() if name == "input" or name in step.body.own_fields}


def turns_form(step: PreparedStep, prepared: object) -> dict[str, Any]:
    """Return the field that tells readers how calls stand in the turns of a step with server tools, else nothing."""
    request = step.request
    if step.then is None or not isinstance(request, GenerateRequest) or not isinstance(prepared, GeneratePayload):
        return {}
    has_grammar = request.sampling.grammar is not None
    form = form_of(request.input, prepared, has_grammar=has_grammar, left=step.then["calls_left"])
    return {CALLS: form.model_dump(mode="json", exclude_none=True)}


def unprepared_payload(step: PreparedStep, request: JobRequest) -> dict[str, Any]:
    """Return the payload of a step that its worker prepares: the request, with what is known beside it."""
    policy = {} if step.policy is None else {"policy": step.policy.model_dump(mode="json", exclude_none=True)}
    followed = {} if step.then is None else {THEN: dict(step.then)}
    return {
        **_own_fields(step, request),
        **_template_fields(request),
        **followed,
        REFERENCES: step.marks.paths,
        **policy,
    }


def _template_fields(request: JobRequest) -> dict[str, Any]:
    """Return what the worker of a step needs to know of the prompt template that its input came from."""
    if not isinstance(request, GenerateRequest) or request.prompt_use is None or request.template_place is None:
        return {}
    return {TEMPLATE: request.prompt_use.model_dump(mode="json"), TEMPLATE_PLACE: asdict(request.template_place)}


def _sent_fields(step: PreparedStep) -> dict[str, Any]:
    """Return the fields of the step's task as they can be sent again: the tools are looked up again then."""
    own = _own_fields(step, step.request)
    return own if step.then is None else {**own, "input": without_tools(own["input"])}


def flow_payload(request: FlowRequest, steps: Sequence[PreparedStep], last: PreparedStep) -> dict[str, Any]:
    """Return the steps as they can be sent again, and what a reader of the answer needs of its step."""
    by_name = {step.body.name: step for step in steps}
    payload: dict[str, Any] = {
        "steps": [
            {
                "name": body.name,
                "task": body.task,
                "model": queue_name(by_name[body.name].version.model, by_name[body.name].version.version),
                **with_references(
                    _sent_fields(by_name[body.name]), lambda path: {MARK: path}, by_name[body.name].marks.paths
                ),
                "needs": list(body.needs),
                "stream": body.stream,
            }
            for body in request.steps
        ]
    }
    return {**payload, **last.form}
