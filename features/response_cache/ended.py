"""What the response cache adds to the ends of jobs: those that wait for the answer get it in the same transaction."""

from headrace.features.response_cache.sharers import answer_from
from headrace.store.jobs.job_rows import EndPart

PART = EndPart(mark="is_source", write=answer_from)
