"""The row of ``responses`` that is stored with a new job: input items, the request, and whether it is visible."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from sqlalchemy import Connection, text

from headrace.features.responses.answered_calls import store_answers
from headrace.store.jobs.acceptance import NewJob
from headrace.store.jobs.answered_calls import AnsweredCall
from headrace.store.jobs.face_row import FaceRow
from headrace.store.json_text import dump_json
from headrace.store.seal import Seal, SealContext, seal_columns

_TEXTS = ("instructions", "prompt", "prompt_cache_key", "safety_identifier", "text", "tools", "user")
"""Fields of the request with texts of the caller, which the response shows again."""

_ADD = text("""
INSERT INTO responses (job_id, tenant_id, previous_id, is_stored, is_background, goes_on, appends_to, input, request)
SELECT job_id, tenant_id, previous_id, is_stored, is_background, goes_on, appends_to, input, request
FROM json_to_recordset(CAST(:rows AS json)) AS r(
    job_id text, tenant_id text, previous_id text, is_stored boolean, is_background boolean, goes_on boolean,
    appends_to text, input jsonb, request jsonb)
""")


@dataclass(frozen=True, slots=True)
class NewResponse(FaceRow):
    """The row to store with a new job. ``input``: items as the API shows them; ``request``: the request's fields.

    ``goes_on``: ``input`` has only the items that the previous response does not have. ``appends_to``: the conversation
    that it belongs to; ``input`` has only what is new in it. ``answered_calls``: the calls whose approvals its
    input answers. ``job_before``: the job of the response before. No column has the last two.
    """

    previous_id: str | None
    is_stored: bool
    is_background: bool
    input: list[dict[str, Any]]
    request: dict[str, Any]
    goes_on: bool = False
    appends_to: str | None = None
    answered_calls: tuple[AnsweredCall, ...] = ()
    job_before: str | None = None

    @property
    def stored_input(self) -> Any:
        """The column. With ``goes_on`` it is no list, so that an older release does not read it as all items."""
        return {"items": self.input} if self.goes_on else self.input

    @property
    def is_kept(self) -> bool:
        """As ``FaceRow.is_kept``: another response can only go on from one that is stored."""
        return self.is_stored

    @property
    def conversation(self) -> str | None:
        """As ``FaceRow.conversation``."""
        return self.appends_to

    def digested(self, asked: dict[str, Any]) -> dict[str, Any]:
        """As ``FaceRow.digested``, without the input: its items got new ids, and are in the request as messages."""
        if self.appends_to is not None:
            # Without what the conversation has: when the request is sent again, that may be more.
            new = [{name: value for name, value in item.items() if name != "id"} for item in self.input]
            asked = asked | {"input": {**asked["input"], "messages": new, "conversation": self.appends_to}}
        return asked | {"response": [self.previous_id, self.is_stored, self.is_background, self.request]}

    def texts(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """As ``FaceRow.texts``: the items, and the fields of the request."""
        shown = {name: self.request[name] for name in _TEXTS if name in self.request}
        choice = self.request.get("tool_choice")
        return self.input, shown | ({"tool_choice": choice} if isinstance(choice, dict) else {})

    def with_texts(self, first: list[dict[str, Any]], second: Mapping[str, Any]) -> Self:
        """As ``FaceRow.with_texts``."""
        return replace(self, input=first, request=self.request | dict(second))

    @classmethod
    def write(cls, connection: Connection, jobs: Sequence[NewJob], seal: Seal) -> None:
        """As ``FaceRow.write``, with the approvals that the input answers. Raises as ``store_answers``."""
        made = {job.id: job.response for job in jobs if isinstance(job.response, cls)}
        rows = [_row(job, made[job.id], seal) for job in jobs]
        connection.execute(_ADD, {"rows": dump_json(rows)})
        store_answers(connection, [(job, made[job.id]) for job in jobs], seal)


def _row(job: NewJob, made: NewResponse, seal: Seal) -> dict[str, Any]:
    place = SealContext(job.tenant_id, "responses", "", job.id)
    return {
        "job_id": job.id,
        "tenant_id": job.tenant_id,
        "previous_id": made.previous_id,
        "is_stored": made.is_stored,
        "is_background": made.is_background,
        "goes_on": made.goes_on,
        "appends_to": made.appends_to,
        **seal_columns(seal, place, {"input": made.stored_input, "request": made.request}),
    }
