"""Converts an input line of a batch into a job of the batch service class, with the batch's deadline."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import structlog

from headrace.features.batches.batch_input import (
    LineRefused,
    RawLine,
    Request,
    custom_id_of,
    model_of,
    read_request,
)
from headrace.features.batches.batch_steps import ParsedLine
from headrace.features.batches.batches import Batch
from headrace.features.batches.line_targets import LineTarget, target_of
from headrace.features.flows.pipeline_jobs import ParsedPipelineJob
from headrace.features.flows.pipeline_lines import PipelineLines
from headrace.producer_api.server.errors import body_of, internal_error, status_of
from headrace.producer_api.submission.submit import Submissions
from headrace.store.db.database import Database
from headrace.store.errors import Forbidden, HeadraceError, InvalidRequest, NotFound, Unavailable
from headrace.store.jobs.jobs import Accepted, NewJob
from headrace.store.settings import Settings
from headrace.store.tenants.api_keys import Principal, principal_of
from headrace.store.tracing.tracing import OFF, TraceContext, Tracing, read_traceparent

_log = structlog.get_logger("headrace.producer_api")

# No webhook per line: only the end of the batch sends an event.
_NO_EVENTS = {"events": list[str]()}
_SHORTEST_S = 0.001


class LineReader:
    """Parses lines and creates jobs from them. Blocking: may query Postgres."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        submissions: Submissions,
        pipelines: PipelineLines,
        tracing: Tracing = OFF,
    ) -> None:
        self._most_bytes = settings.max_body_bytes
        self._db = db
        self._submissions = submissions
        self._pipelines = pipelines
        self._tracing = tracing

    def owner(self, batch: Batch) -> Principal:
        """Return the principal that owns the batch's jobs. Raises Forbidden while the tenant is disabled."""
        return principal_of(self._db, batch.tenant_id, batch.api_key_id)

    def read(self, batch: Batch, owner: Principal, line: RawLine) -> tuple[Request, LineTarget]:
        """Parse the line, and return it with the version that runs it.

        Raises LineRefused, also for an unknown model or one that the key may not use.
        """
        request = read_request(line, batch.url, self._most_bytes)
        with _refusing(request):
            target = target_of(self._submissions, self._pipelines, batch, owner, request.wanted)
        found = self._submissions.guard_for(owner, target.policed_model)
        if found is not None:
            try:
                found.check_fixed(request.custom_id, "custom_id")
            except InvalidRequest as error:
                raise LineRefused(error.code, error.message, "custom_id") from error
        return request, target

    def pins_of(self, owner: Principal, request: Request, target: LineTarget) -> dict[str, str]:
        """Return the versions that the batch of a line keeps. Raises LineRefused."""
        with _refusing(request):
            return target.pins(owner)

    def policed_error(self, owner: Principal, line: RawLine, message: str, param: str | None) -> dict[str, Any]:
        """Return ``message`` and ``param`` of an error after the input policy: both can quote the line's text."""
        complaint = {"message": message, "param": param}
        found = self._submissions.guard_for(owner, model_of(line))
        if found is None:
            return complaint
        try:
            return found.fields(complaint, "body")
        except InvalidRequest as error:
            return {"message": error.message, "param": error.param}

    def take(self, batch: Batch, owner: Principal, line: RawLine, remaining_s: float) -> ParsedLine:
        """Return the line as a job, or with the error response of its route. Raises Unavailable."""
        try:
            request, target = self.read(batch, owner, line)
            try:
                job = self._job(batch, owner, request, target, remaining_s)
            except HeadraceError as complaint:
                raise request.wanted.complain(complaint) from complaint
            return ParsedLine(line.number, request.custom_id, job)
        except Unavailable:
            raise
        except LineRefused as refused:
            cause = refused.__cause__
            plain = InvalidRequest(refused.message, code=refused.code, param=refused.param)
            error: HeadraceError = cause if isinstance(cause, HeadraceError) else plain
        except HeadraceError as refusal:
            error = refusal
        except Exception as defect:  # noqa: BLE001 - one line must not stop its batch
            error = internal_error(defect)
        # A policy that was set after validation may refuse the custom id itself.
        is_unfit = error.param == "custom_id" or line.cannot_be_stored
        policed = self.policed_error(owner, line, error.message, error.param)
        error.message, error.param = policed["message"], policed["param"]
        return _refused(line, error, line.name if is_unfit else custom_id_of(line))

    def note_accepted(self, accepted: Iterable[Accepted]) -> None:
        """Tell the features that jobs of lines are stored."""
        for outcome in accepted:
            self._submissions.note_accepted(outcome)

    def refuse(self, line: RawLine) -> ParsedLine:
        """Return the line as refused, after Postgres has rejected one of its values."""
        return _refused(line, InvalidRequest("a value of the line cannot be stored"), line.name)

    def _job(self, batch: Batch, owner: Principal, request: Request, target: LineTarget, remaining_s: float) -> NewJob:
        own_ms = request.wanted.job.deadline_ms
        own_s = remaining_s if own_ms is None else min(remaining_s, own_ms / 1000)
        of_line: dict[str, Any] = {
            "deadline_s": max(own_s, _SHORTEST_S),
            "webhook": _NO_EVENTS,
            "fingerprint": None,
        }
        made = target.make_job(batch, owner, self._new_trace(batch))
        return replace(made, **of_line, steps=tuple(replace(step, **of_line) for step in made.steps))

    def _new_trace(self, batch: Batch) -> TraceContext | None:
        """Return a trace for a line; None while tracing is off. An unsampled request leaves all its lines unsampled."""
        trace, source = self._tracing.begin(None), read_traceparent(batch.traceparent)
        return trace if trace is None or source is None or source.is_sampled else replace(trace, is_sampled=False)


@contextmanager
def _refusing(request: Request) -> Iterator[None]:
    """Refuse the line if it has no version to run it, with the field that says so."""
    is_pipeline = isinstance(request.wanted, ParsedPipelineJob)
    try:
        yield
    except (Forbidden, NotFound) as error:
        raise LineRefused(error.code, error.message, "url" if is_pipeline else "body.model") from error
    except InvalidRequest as error:
        raise LineRefused(error.code, error.message, f"body.{error.param}") from error


def _refused(line: RawLine, error: HeadraceError, name: str) -> ParsedLine:
    return ParsedLine(line.number, name, None, {"status_code": status_of(error), "body": body_of(error)})
