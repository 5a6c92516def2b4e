"""What the response cache adds to submissions."""

from headrace.features.response_cache.lookup import CacheLookups
from headrace.producer_api.submission.submission_hook import SubmissionPart

PART = SubmissionPart(CacheLookups)
