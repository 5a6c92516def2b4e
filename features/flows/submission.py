"""What jobs of several steps add to submissions."""

from headrace.features.flows.flow_jobs import FlowSubmissions
from headrace.producer_api.submission.submission_hook import SubmissionPart

PART = SubmissionPart(FlowSubmissions)
