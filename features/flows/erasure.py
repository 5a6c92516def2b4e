"""How the reasons of approvals are erased: with the outputs of the jobs that asked for them."""

from headrace.store.jobs.erasure import ErasurePart, erasing

_REASONS = "UPDATE tool_approvals SET reason = NULL WHERE job_id = ANY(CAST(:ids AS text[])) AND reason IS NOT NULL"

PART = ErasurePart(outputs=erasing(_REASONS))
