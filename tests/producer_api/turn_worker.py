"""A worker controlled by the test for jobs whose model calls tools of the server: it streams turns and ends calls."""

from collections.abc import Sequence
from typing import Any

import httpx2
import redis

from headrace.features.flows.running.step_inputs import FilledSteps, StepInputs
from headrace.features.flows.task import CALL_TOOL
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import HttpTool
from headrace.models.catalog import register
from headrace.models.engine.requests import FinishReason
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Claim, Finish, Release, claim, finish, release
from headrace.store.registry.models import register_version
from headrace.store.schema.job_states import JobState
from headrace.store.streams.stream_log import Frame, StreamPublisher
from headrace.store.tasks.generate import GeneratePayload
from headrace.workers.runs.in_flight import Attempt
from headrace.workers.runs.outcome import answer


class TurnWorker:
    """Runs the steps of one job after another, through the store and Redis as real workers do."""

    def __init__(self, db: Database, client: redis.Redis, api: httpx2.Client, job_id: str) -> None:
        self._db = db
        self._api = api
        self._job_id = job_id
        self._frames = StreamPublisher(client, maxlen=1000, ttl_s=60, seal=db.seal)
        self._answers: list[str] = []

    def say(self, name: str, *texts: str) -> Claim:
        """Run a step of the model: stream these texts and end it; return its claim as its task got it."""
        held = self._claimed(name)
        self._answers.append(held.job_id)
        self._end(held, _Says(texts, self._frames))
        return held

    def lose(self, name: str, *texts: str) -> None:
        """Stream these texts, and give the step back before its end, as a worker with a broken engine does."""
        held = self._claimed(name)
        self._frames.publish(_frames(held, texts))
        assert release(self._db, [Release(held.job_id, held.epoch, charge=True, parent_id=held.parent_id)])

    def call(self, name: str, text: str, *, is_error: bool = False) -> Claim:
        """Run a step that calls a tool, with this result."""
        held = self._claimed(name)
        self._end(held, _Returns({"text": text, "is_error": is_error, "tries": 1}))
        return held

    def _claimed(self, name: str) -> Claim:
        (step,) = [one for one in self._api.get(f"/v1/jobs/{self._job_id}").json()["steps"] if one["name"] == name]
        queue = f"{step['model']}@{step['model_version']}"
        return claim(self._db, "worker", queue, [step["job_id"]], 60.0)[step["job_id"]]

    def _end(self, held: Claim, work: Any) -> None:
        end = FilledSteps(StepInputs(self._db), most_steps=16).compute(Attempt(held, 0.0, None, 0.0), work.compute)
        assert isinstance(end, Finish)
        assert finish(self._db, [end])
        if isinstance(work, _Says):
            self._frames.publish([Frame(held.job_id, held.epoch, len(work.texts) + 1, None)])
        self._frames.nudge(self._answers)


def _frames(held: Claim, texts: Sequence[str]) -> list[Frame]:
    return [Frame(held.job_id, held.epoch, seq, text) for seq, text in enumerate(texts, 1)]


def _ended(held: Claim, output: dict[str, Any], deltas: Sequence[str] = ()) -> Finish:
    usage = {"input_tokens": 5, "output_tokens": len(deltas)}
    return Finish(
        held.job_id,
        held.epoch,
        JobState.SUCCEEDED,
        output,
        None,
        usage,
        tenant_id=held.tenant_id,
        parent_id=held.parent_id,
        deltas=tuple(deltas),
    )


class _Says:
    def __init__(self, texts: Sequence[str], frames: StreamPublisher) -> None:
        self.texts = texts
        self._frames = frames

    def compute(self, attempt: Attempt) -> Finish:
        held = attempt.claim
        self._frames.publish(_frames(held, self.texts))
        payload = GeneratePayload.model_validate(held.payload)
        output = answer(payload, held.job_id, "".join(self.texts), FinishReason.STOP)
        return _ended(held, output.model_dump(exclude_none=True), self.texts)


class _Returns:
    def __init__(self, output: dict[str, Any]) -> None:
        self._output = output

    def compute(self, attempt: Attempt) -> Finish:
        return _ended(attempt.claim, self._output)


def add_weather(db: Database, tenant: str) -> None:
    """Add a model with room for tools, the tool ``weather``, and the version that makes calls."""
    register(db, "wide", "fake", "auto", actor="t")
    tools.create(db, tenant, "weather", HttpTool(url="https://tools.example.com/"), actor="t")
    runner = CALL_TOOL.fake_runner
    register_version(
        db, model="tools", runner=runner, source=runner, digest=runner, dtype="auto", context_window=100, actor="t"
    )
