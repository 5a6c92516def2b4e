"""What policies add to submissions."""

from headrace.features.policy.input_policy import active_policies
from headrace.producer_api.submission.submission_hook import SubmissionPart

PART = SubmissionPart(guards=active_policies)
