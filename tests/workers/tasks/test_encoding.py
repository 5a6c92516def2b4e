"""The outcome of an encode request that the engine ended, and the policy of the thread that computes."""

import os
import sys
from pathlib import Path

import pytest

from models.engine.requests import EncodeOutput, EncodeRequest, FinishReason
from models.fakes.fake_transcriber import FakeTranscriber
from models.runners.transcription import ChunkOptions
from prompts.audio.transcriber_folder import FAKE
from prompts.tokenizer import ByteTokenizer
from store.files.blob_storage import open_blobs
from store.jobs.claims import Claim, Finish
from store.registry.models import ModelVersion
from store.schema.job_states import JobState
from store.settings import Settings
from tests.workers.conftest import Bench, StartWorker
from workers.tasks.encoding import completed
from workers.tasks.self_test import run_all
from workers.tasks.task_model import quiet_setup
from workers.tasks.transcribe import TranscribeModel

CLAIM = Claim("job_1", "tnt_1", 1, 1, 1, "tiny", 1, {}, 1, None, 0.0, 3, task="embed")


@pytest.mark.parametrize(
    ("reason", "state", "output", "code"),
    [
        (FinishReason.STOP, JobState.SUCCEEDED, {"vectors": 1}, None),
        (FinishReason.CANCELLED, JobState.CANCELLED, None, None),
        (FinishReason.DEADLINE, JobState.EXPIRED, None, "deadline_exceeded"),
    ],
)
def test_the_reason_of_the_engine_decides_the_state(
    reason: FinishReason, state: JobState, output: dict | None, code: str | None
) -> None:
    vectors = (b"1",) if reason is FinishReason.STOP else ()
    found = completed(CLAIM, EncodeOutput("job_1", vectors, reason, 3, 0.1), lambda made: {"vectors": len(made)})
    assert isinstance(found, Finish)
    assert (found.state, found.output, (found.error or {}).get("code")) == (state, output, code)


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the policy SCHED_IDLE")


@linux_only
@pytest.mark.parametrize("version", ["fake-encoder"], indirect=True)
def test_only_the_computing_thread_of_an_encoders_worker_gives_way(bench: Bench, start_worker: StartWorker) -> None:
    worker = start_worker(encode_gives_way=True)
    (job,) = bench.wait_ended(bench.submit())
    assert job.state is JobState.SUCCEEDED
    threads = [int(thread.name) for thread in Path(f"/proc/{worker.pid}/task").iterdir()]
    policies = [os.sched_getscheduler(thread) for thread in threads]
    assert policies.count(os.SCHED_IDLE) == 1
    assert policies.count(os.SCHED_OTHER) == len(policies) - 1 > 1


@linux_only
def test_a_transcriber_gives_way_too(version: ModelVersion, settings: Settings) -> None:
    found: list[int] = []
    transcriber = FakeTranscriber(step_s=1, sleep=lambda _: found.append(os.sched_getscheduler(0)))
    model = TranscribeModel(version, transcriber, ByteTokenizer(), FAKE, open_blobs(settings), 4)
    options = ChunkOptions(chunks=(bytes(64),), language=None)
    for gives_way in (True, False):
        setup = quiet_setup(settings.model_copy(update={"encode_gives_way": gives_way}), 1)
        run_all(model.new_engine(setup), [EncodeRequest("one", ((1,),), options)])
    assert found == [os.SCHED_IDLE, os.SCHED_OTHER]
