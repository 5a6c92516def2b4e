"""How vector stores are erased: by a purge, with their files and passages."""

from headrace.store.jobs.erasure import ErasurePart, PurgedRows

PART = ErasurePart(purges=(PurgedRows("vector_stores"),))
