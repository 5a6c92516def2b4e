"""A job that ends the inference server whenever it runs: it fails, and the jobs beside it do not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.models.external_registration import register_external
from headrace.store.db.database import Database
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.workers.runs.outcome import FREE_LOSSES
from tests.models.external.fake_model import answer
from tests.models.external.fake_server import Answer
from tests.models.external.fake_vllm import MODEL, FakeVllm
from tests.models.external.served import bytes_folder
from tests.processes import StartProcess, wait_for

from .conftest import Bench, Duties, worker_command, worker_environment
from .test_poison import attempts_beside

MARK = "the apple with the red cheek"
LENGTH = 400


class MortalVllm(FakeVllm):
    """Dies of each request with MARK in its prompt, and comes back."""

    num_deaths = 0

    async def _generate(self, body: dict[str, Any], answer: Answer) -> None:
        if MARK.encode() in bytes(token for token in body["token_ids"] if token < 256):
            self.loop.create_task(self._reborn())
        await super()._generate(body, answer)

    async def _reborn(self) -> None:
        self.num_deaths += 1
        await self.die()
        await self.listen()


@pytest.fixture
def server() -> Iterator[MortalVllm]:
    server = MortalVllm(context_window=1024, step_s=0.01)
    yield server
    server.close()


@pytest.mark.full
def test_it_fails_and_its_neighbours_succeed(
    db: Database, settings: Settings, server: MortalVllm, start_process: StartProcess, tmp_path: Path
) -> None:
    spec = EngineSpec(kind=EngineKind.VLLM, served_model=MODEL, url=server.url)
    files = bytes_folder(tmp_path / "bytes")
    bench = Bench(db, settings, register_external(db, "served", spec, source=None, tokenizer=files, actor="tests"))
    duties = Duties(bench)
    duties.start()
    start_process(worker_command("served"), worker_environment(settings, {"home": tmp_path / "home", "lease_s": 60}))
    innocents = [bench.submit(prompt=f"tell me of {name}", sampling={"max_tokens": LENGTH})[0] for name in "abc"]
    wait_for(lambda: bench.states(innocents)[JobState.RUNNING] == 3, "the innocents run together")
    (poison,) = bench.submit(prompt=f"eat {MARK}")
    *ended, failed = bench.wait_ended([*innocents, poison], timeout_s=60)
    duties.stop()
    for job, name in zip(ended, "abc", strict=True):
        assert job.state is JobState.SUCCEEDED, job.error
        whole = bytes(answer(f"tell me of {name}".encode(), LENGTH, ignore_eos=True)).decode()
        assert (job.output or {})["text"] == whole, "it has gone on each time"
    assert (failed.state, (failed.error or {})["code"]) == (JobState.FAILED, "max_attempts_exceeded")
    assert server.num_deaths == FREE_LOSSES + 3
    assert attempts_beside(bench, poison, epoch=server.num_deaths) == [], "the last time it ran alone"
    bench.close()
