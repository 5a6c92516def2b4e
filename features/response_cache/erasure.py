"""How an entry of the response cache is erased: with the input of its job, or with its output."""

from headrace.store.jobs.erasure import ErasurePart, erasing

_entries = erasing("DELETE FROM cache_entries WHERE job_id = ANY(CAST(:ids AS text[]))")

PART = ErasurePart(inputs=_entries, outputs=_entries)
