"""The ids of responses. The feature ``responses`` has the rest."""

PREFIX = "resp_"
JOB_PREFIX = "job_"


def response_id(job_id: str) -> str:
    """Return the id of the job's response."""
    return PREFIX + job_id.removeprefix(JOB_PREFIX)
