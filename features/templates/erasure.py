"""How prompt templates are erased: by a purge."""

from headrace.store.jobs.erasure import ErasurePart, PurgedRows

PART = ErasurePart(purges=(PurgedRows("prompts"),))
