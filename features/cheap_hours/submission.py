"""What cheap hours add to submissions: the start of jobs that ask for them."""

from headrace.features.cheap_hours.hours import read_hours
from headrace.producer_api.submission.draft_job import DraftJob
from headrace.producer_api.submission.submission_hook import SubmissionHook, SubmissionPart, SubmissionParts
from headrace.store.jobs.jobs import NewJob


class CheapStarts(SubmissionHook):
    """Gives jobs their start. Those of several steps have it from ``features.flows``."""

    def __init__(self, parts: SubmissionParts) -> None:
        self.hours = read_hours(parts.settings.cheap_hours)

    def with_job(self, draft: DraftJob, job: NewJob) -> NewJob:
        """Return the job with its start."""
        return self.hours.place(job, draft.request)


PART = SubmissionPart(CheapStarts)
