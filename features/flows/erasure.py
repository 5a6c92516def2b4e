"""How the reasons of approvals are erased: with the outputs of the jobs that asked for them; and pipelines, by a purge.

Pipelines are rows of ``prompts``, as prompt templates are, whose feature names the table too.
"""

from headrace.store.jobs.erasure import ErasurePart, PurgedRows, erasing

_REASONS = "UPDATE tool_approvals SET reason = NULL WHERE job_id = ANY(CAST(:ids AS text[])) AND reason IS NOT NULL"

PART = ErasurePart(outputs=erasing(_REASONS), purges=(PurgedRows("prompts"),))
