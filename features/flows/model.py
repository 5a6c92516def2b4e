"""The work of the task that calls tools: looks the tool up, then calls it on a thread of the engine for calls."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from headrace.features.flows.store.approvals import Verdict, verdict_of
from headrace.features.flows.task import CALL_TOOL, ToolCallInput
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_caller import ToolCaller
from headrace.features.flows.tools.tool_results import ToolOrder, refusal_of
from headrace.models.engine.protocol import AnyEngine
from headrace.prompts.tasks.own_task import num_tokens_of
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.calls.ssrf_guard import GuardedClient
from headrace.store.jobs.claims import Claim
from headrace.store.mcp_commands import parse_commands
from headrace.store.payloads.job_payload import read_payload
from headrace.store.payloads.tool_approval import ApprovalState
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncodeJob
from headrace.workers.tasks.own_task import OwnModel, OwnWork, output_of
from headrace.workers.tasks.task_model import ModelPart, WorkContext


@dataclass(frozen=True, slots=True)
class ToolModel(OwnModel):
    """A version without files that makes calls."""

    encoder: ToolCaller

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the call of a payload, whose tool is not looked up yet."""
        given = read_payload(self.spec.payload, payload).input
        assert isinstance(given, ToolCallInput)  # noqa: S101 - the payload's own schema
        order = ToolOrder(given.tool, given.arguments_text, refusal=_refusal(given))
        return EncodeJob(((0,) * num_tokens_of(self.spec, given),), order, output_of)

    def read_claim(self, claim: Claim, context: WorkContext) -> EncodeJob:
        """Return the call of a claim. Each attempt has the same idempotency key. Raises Unavailable, CannotOpen."""
        job = self.read(claim.payload)
        order: ToolOrder = job.options
        tool = tools.called(context.db, claim.tenant_id, order.name)
        refusal = order.refusal or refusal_of(verdict_of(context.db, claim.tenant_id, claim.job_id))
        known = replace(order, tenant_id=claim.tenant_id, key=claim.job_id, tool=tool, refusal=refusal)
        return replace(job, options=known)

    def new_work(self, engine: AnyEngine, context: WorkContext) -> OwnWork:
        """Return the work for the jobs of this model. Its calls are counted in the metrics of the worker."""
        self.encoder.on_call = context.metrics.add_calls(self.encoder.num_open)
        return OwnWork(engine, context, self)


def _refusal(given: ToolCallInput) -> str | None:
    """Return why a call is not made that was refused, or whose arguments were found not to fit, before it was a job."""
    if given.is_fault:
        return given.refusal
    return None if given.refusal is None else refusal_of(Verdict(ApprovalState.REFUSED, given.refusal))


def load_tool_model(version: ModelVersion, settings: Settings, _read_file: ReadFile) -> ToolModel:
    """Return the caller. There is nothing to load."""
    caller = ToolCaller(
        GuardedClient(settings),
        context_window=CALL_TOOL.declared.most_tokens,
        most_of_one=max(1, settings.max_slots // 4),
        commands=parse_commands(settings.mcp_commands),
    )
    return ToolModel(version, caller, CALL_TOOL)


PART = ModelPart(CALL_TOOL, load_tool_model)
