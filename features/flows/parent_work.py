"""What a worker does for steps: their input is filled in, their end may add steps, and both are announced."""

from headrace.features.flows.running.step_inputs import FilledSteps, StepInputs
from headrace.features.flows.running.step_signals import RedisSignals
from headrace.store.db.database import Database
from headrace.store.redis.celery_queue import HintPublisher, celery_app
from headrace.store.redis.hint_announcer import HintAnnouncer
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import StreamPublisher
from headrace.workers.runs.parent_work import ParentWork, ParentWorkPart


class _StepWork(RedisSignals, FilledSteps, ParentWork):
    def __init__(self, settings: Settings, db: Database, streams: StreamPublisher) -> None:
        RedisSignals.__init__(self, HintAnnouncer(HintPublisher(celery_app(settings))), streams)
        inputs = StepInputs(db, most_chars=settings.max_body_bytes)
        FilledSteps.__init__(self, inputs, most_steps=settings.max_steps)


PART = ParentWorkPart(_StepWork)
