"""What rollouts add to submissions."""

from headrace.features.rollouts.division import RolloutDivision
from headrace.producer_api.submission.submission_hook import SubmissionPart

PART = SubmissionPart(RolloutDivision)
