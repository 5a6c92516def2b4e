"""The keeper of schedules: in the API process that leads it makes the runs that are due.

A run has the Idempotency-Key of its schedule and tick, and the schedule moves to its next tick only after the run is
stored. A process that dies between the two leaves the tick to the next one, whose request finds the run by its key.
"""

import asyncio
from datetime import datetime
from functools import partial
from typing import Any, Final

import structlog
from pydantic import TypeAdapter, ValidationError

from headrace.features.batches import batches
from headrace.features.batches.batch_routes import BatchRequest, new_batch, store_batch
from headrace.features.files import files
from headrace.features.schedules import schedules
from headrace.features.schedules.schedules import Schedule
from headrace.features.schedules.ticks import Missed, due_tick, following
from headrace.producer_api.api_part import ApiWork
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.submission.draft_job import Origin
from headrace.store.errors import (
    Gone,
    HeadraceError,
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unavailable,
)
from headrace.store.failpoints import failpoint
from headrace.store.jobs import jobs
from headrace.store.keeper import Duty, run_parts
from headrace.store.tasks.flow import JobOrFlowRequest
from headrace.store.tenants.api_keys import Principal, principal_of_key

log = structlog.get_logger(__name__)

PERIOD_S: Final = 1.0
SCHEDULE_ID: Final = "schedule_id"
SCHEDULED_AT: Final = "scheduled_at"
"""The metadata of each run: the id of its schedule, and its tick in Unix seconds."""

_ROUTE = "schedules"
_JOB: TypeAdapter[Any] = TypeAdapter(JobOrFlowRequest)


def read_job(body: dict[str, Any]) -> Any:
    """Return the request of a job. Raises ValidationError."""
    return _JOB.validate_python(body)


class ScheduleKeeper(ApiWork):
    """The duty."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._db = runtime.duties_db
        self.duties = ((Duty("run_schedules", PERIOD_S, self._turn),),)

    def _turn(self) -> None:
        run_parts((one, partial(self._advance, owner, one)) for owner, one in schedules.due(self._db))

    def _advance(self, tenant_id: str, schedule_id: str) -> None:
        """Decide on the schedule's next tick: it has a run, or it is skipped, or it waits."""
        schedule = schedules.get(self._db, tenant_id, schedule_id)
        if schedule.next_at is None or schedule.next_at > schedule.now:
            return
        tick, skipped, runs = due_tick(schedule.cron, schedule.zone, schedule.missed, schedule.next_at, schedule.now)
        if runs and not schedule.may_overlap and self._is_under_way(schedule):
            if schedule.missed is not Missed.SKIP:
                return  # it waits for the run before
            runs = False
        next_at = following(schedule.cron, schedule.zone, tick)
        if not runs:
            schedules.move(self._db, schedule, next_at, tick=tick, num_skipped=skipped + 1, error=schedule.last_error)
            log.info("schedule_skipped", schedule_id=schedule_id, num_ticks=skipped + 1)
            return
        run_id, error = self._run(schedule, tick)
        failpoint("schedules.run_stored")
        schedules.move(self._db, schedule, next_at, tick=tick, num_skipped=skipped, run_id=run_id, error=error)

    def _is_under_way(self, schedule: Schedule) -> bool:
        run_id = schedule.last_run_id
        if run_id is None:
            return False
        try:
            if "batch" in schedule.definition:
                return not batches.get(self._db, schedule.tenant_id, run_id).status.is_terminal
            return not jobs.get(self._db, schedule.tenant_id, run_id).state.is_terminal
        except (NotFound, Gone):
            return False

    def _run(self, schedule: Schedule, tick: datetime) -> tuple[str | None, dict[str, Any] | None]:
        """Store the run of a tick; return its id, or why there is none. Raises what may pass."""
        try:
            principal = principal_of_key(self._db, schedule.api_key_id)
            return self._stored(principal, schedule, tick), None
        except (RateLimited, Unavailable):
            raise
        except ValidationError:
            error: HeadraceError = InvalidRequest("this release does not take the request any more: make it anew")
        except IdempotencyKeyReused:
            return None, None
        except HeadraceError as refused:
            error = refused
        log.warning("schedule_refused", schedule_id=schedule.id, code=error.code)
        return None, {"code": error.code, "message": error.message, "tick": int(tick.timestamp())}

    def _stored(self, principal: Principal, schedule: Schedule, tick: datetime) -> str:
        key = f"{schedule.id}:{int(tick.timestamp())}"
        origin = Origin(_ROUTE, key, "", False, 0)
        marks = {SCHEDULE_ID: schedule.id, SCHEDULED_AT: str(int(tick.timestamp()))}
        if (body := schedule.definition.get("batch")) is not None:
            request = BatchRequest.model_validate({**body, "metadata": {**(body.get("metadata") or {}), **marks}})
            fingerprints, hours = self._runtime.digests.fingerprints(key), self._runtime.settings.cheap_hours
            new = new_batch(request, origin, principal.key_id, fingerprints, cheap_hours=hours)
            batch = store_batch(
                self._runtime,
                principal,
                new,
                lambda: files.get(self._db, principal.tenant_id, request.input_file_id),
                is_retry=False,
            )
            return batch.id
        body = schedule.definition["job"]
        job = read_job({**body, "metadata": {**(body.get("metadata") or {}), **marks}})
        receipt = asyncio.run(self._runtime.submissions.submit(principal, job, origin))
        return receipt.job_id
