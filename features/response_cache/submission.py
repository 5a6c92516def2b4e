"""What the response cache adds to submissions."""

from headrace.features.response_cache.lookup import CacheLookups, CacheOff
from headrace.producer_api.submission.submission_hook import SubmissionPart

PART = SubmissionPart(lambda parts: CacheOff() if parts.settings.response_cache == "off" else CacheLookups(parts))
