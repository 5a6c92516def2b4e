"""Lines of a batch as jobs: what a line asks for, made a job of the batch class that ends with the batch's window."""

from dataclasses import replace
from typing import Any

import structlog

from producer_api.batches.batch_input import LineRefused, RawLine, Request, custom_id_of, model_of, read_request
from producer_api.server.errors import body_of, internal_error, status_of
from producer_api.submission.input_policy import check_fixed, guarded
from producer_api.submission.submit import Submissions
from store.batches.batch_steps import ParsedLine
from store.batches.batches import Batch
from store.db.database import Database
from store.errors import Forbidden, HeadraceError, InvalidRequest, NotFound, Unavailable
from store.jobs.jobs import NewJob
from store.payloads.job_payload import ServiceClass
from store.settings import Settings
from store.tenants.api_keys import Principal, principal_of

_log = structlog.get_logger("producer_api")

# Nobody is told of a line's end but by the batch's.
_QUIET = {"events": list[str]()}
_SHORTEST_S = 0.001


class Lines:
    """Reads lines and makes jobs of them. Blocks on Postgres for a model's files."""

    def __init__(self, settings: Settings, db: Database, submissions: Submissions) -> None:
        self._most_bytes = settings.max_body_bytes
        self._db = db
        self._submissions = submissions

    def owner(self, batch: Batch) -> Principal:
        """Return in whose name the lines become jobs. Raises Forbidden while the tenant is disabled."""
        return principal_of(self._db, batch.tenant_id, batch.api_key_id)

    def read(self, batch: Batch, owner: Principal, line: RawLine) -> Request:
        """Return what the line asks for; raise LineRefused, also for a model that is not there or not the key's."""
        request = read_request(line, batch.url, self._most_bytes)
        try:
            self._submissions.check_model(owner, request.wanted.job.model)
        except (Forbidden, NotFound) as error:
            raise LineRefused(error.code, error.message, "body.model") from error
        found = self._submissions.policy_for(owner, request.wanted.job.model)
        if found is not None:
            try:
                check_fixed(found.policy, request.custom_id, "custom_id")
            except InvalidRequest as error:
                raise LineRefused(error.code, error.message, "custom_id") from error
        return request

    def told(self, owner: Principal, line: RawLine, message: str, param: str | None) -> dict[str, Any]:
        """Return what may be stored of a complaint about a line, which may quote it: its message and param."""
        said = {"message": message, "param": param}
        found = self._submissions.policy_for(owner, model_of(line))
        if found is None:
            return said
        try:
            return guarded(found.policy, said, "body")
        except InvalidRequest as error:
            return {"message": error.message, "param": error.param}

    def take(self, batch: Batch, owner: Principal, line: RawLine, remaining_s: float) -> ParsedLine:
        """Return the line as a job, or as what the route would have answered. Raises Unavailable."""
        try:
            request = self.read(batch, owner, line)
            try:
                job = self._job(batch, owner, request, remaining_s)
            except HeadraceError as complaint:
                raise request.wanted.complain(complaint) from complaint
            return ParsedLine(line.number, request.custom_id, job)
        except Unavailable:
            raise
        except LineRefused as refused:
            cause = refused.__cause__
            told = InvalidRequest(refused.message, code=refused.code, param=refused.param)
            error: HeadraceError = cause if isinstance(cause, HeadraceError) else told
        except HeadraceError as refusal:
            error = refusal
        except Exception as defect:  # noqa: BLE001 - one line must not stop its batch
            error = internal_error(defect)
        # Its own id is what a policy may have refused, one that was set after the batch was checked.
        is_unfit = error.param == "custom_id" or line.cannot_be_stored
        told_of = self.told(owner, line, error.message, error.param)
        error.message, error.param = told_of["message"], told_of["param"]
        return _refused(line, error, line.name if is_unfit else custom_id_of(line))

    def refuse(self, line: RawLine) -> ParsedLine:
        """Return as refused a line of which something cannot be stored, found when that was tried."""
        return _refused(line, InvalidRequest("a value of the line cannot be stored"), line.name)

    def _job(self, batch: Batch, owner: Principal, request: Request, remaining_s: float) -> NewJob:
        asked = request.wanted.job
        own_s = remaining_s if asked.deadline_ms is None else min(remaining_s, asked.deadline_ms / 1000)
        wanted = asked.model_copy(update={"service_class": ServiceClass.BATCH, "webhook": None})
        beside = request.wanted.response
        made = self._submissions.make_job(owner, wanted, project_id=batch.project_id, response=beside)
        return replace(made, deadline_s=max(own_s, _SHORTEST_S), webhook=_QUIET, fingerprint=None)


def _refused(line: RawLine, error: HeadraceError, name: str) -> ParsedLine:
    return ParsedLine(line.number, name, None, {"status_code": status_of(error), "body": body_of(error)})
