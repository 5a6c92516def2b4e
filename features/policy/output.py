"""What policies add to workers."""

from headrace.features.policy.output_policy import CompiledPolicies
from headrace.workers.runs.output_guard import OutputPart

PART = OutputPart(CompiledPolicies)
