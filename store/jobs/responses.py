"""What a job of the Responses API has beside it: the row that ``store.jobs.acceptance`` writes in the
statement that accepts the job, and the event of its end. The feature ``responses`` reads the rows.
"""

from dataclasses import dataclass
from typing import Any

PREFIX = "resp_"
JOB_PREFIX = "job_"

# The event of a row of ``ended`` in ``store.jobs.terminal``; ``store.schema.event_types`` lists the names.
EVENT_TYPE = """'response.' || CASE
    WHEN ended.state = 'succeeded' AND ended.finish_reason = 'length' THEN 'incomplete'
    WHEN ended.state = 'succeeded' THEN 'completed' WHEN ended.state = 'cancelled' THEN 'cancelled' ELSE 'failed' END"""


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """A call that the previous response asked for, and that this one's job begins with.

    ``approval_id``: of the request for an approval. ``function`` and ``arguments``: as the model wrote them.
    ``refusal``: the reason if it was refused, also an empty one; None: it was approved.
    """

    approval_id: str
    function: str
    arguments: str
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class NewResponse:
    """The row to store with a new job. ``input``: items as the API shows them; ``request``: the request's fields.

    ``goes_on``: ``input`` has only the items that the previous response does not have. ``appends_to``: the conversation
    that it belongs to; ``input`` has only what is new in it. ``answered``: the calls whose approvals its input answers.
    ``placeholders_of``: the job of the response before, whose placeholders the input has. No column has the last two.
    """

    previous_id: str | None
    is_stored: bool
    is_background: bool
    input: list[dict[str, Any]]
    request: dict[str, Any]
    goes_on: bool = False
    appends_to: str | None = None
    answered: tuple[AnsweredCall, ...] = ()
    placeholders_of: str | None = None

    @property
    def stored_input(self) -> Any:
        """The column. With ``goes_on`` it is no list, so that an older release does not read it as all items."""
        return {"items": self.input} if self.goes_on else self.input


def response_id(job_id: str) -> str:
    """Return the id of the job's response."""
    return PREFIX + job_id.removeprefix(JOB_PREFIX)
