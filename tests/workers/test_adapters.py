"""A real worker serves its version and the adapters of it, which come while it runs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.models.adapter_registration import register_adapter
from headrace.models.catalog import register
from headrace.models.engine.requests import EngineRequest
from headrace.models.families.model_folder import small_files
from headrace.models.loading.adapters import load_adapter
from headrace.models.loading.torch_load import runner_for
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tasks.generate import build_prompt
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.payloads.conversation import ChatMessage, Role
from headrace.store.payloads.prompt_reference import DefaultTemplate
from headrace.store.redis.celery_queue import Hint
from headrace.store.registry.models import ModelVersion, queue_name, register_version, shadow_name
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tasks.generate import GenerateInput
from tests.models import tiny
from tests.models.adapters import ALL, adapt
from tests.models.driving import request, run_all
from tests.processes import StartProcess, wait_for
from tests.workers.conftest import Bench, StartWorker, worker_command, worker_environment

HOME = Path(__file__).parents[2] / ".headrace"
PROMPT = "Tell me of rivers."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base, and beside it three adapters."""
    model = tiny.build("llama")
    folder = tiny.save_tokenizer(tiny.save(model, tmp_path / "base"))
    for number in range(3):
        adapt(model, tmp_path / f"a{number}", ALL, rank=2 + number, seed=number)
    return folder


@pytest.fixture
def version(db: Database, folder: Path) -> ModelVersion:
    return register(db, "base", str(folder), "float32", actor="tests")


@pytest.fixture
def ours(db: Database, settings: Settings, version: ModelVersion) -> Iterator[Bench]:
    bench = Bench(db, settings, version)
    yield bench
    bench.close()


def answers(folder: Path, adapters: dict[str, ModelVersion]) -> dict[str, str]:
    """Return what the base and each adapter answer alone."""
    runner = runner_for(folder, Settings(device="cpu", kv_pool_tokens=2048, home=HOME), dtype="float32")
    tokenizer = load_tokenizer(small_files(folder))

    def answer(asked: EngineRequest) -> str:
        detokenizer = Detokenizer(tokenizer)
        tokens = run_all(runner, [asked])["r"]
        return "".join(map(detokenizer.add, tokens)) + detokenizer.flush()

    plain = request(build_prompt(tokenizer, GenerateInput(prompt=PROMPT)), max_tokens=16)
    found = {"base": answer(plain)}
    for name, one in adapters.items():
        adapter = load_adapter(runner, Path(one.source), base=folder, digest=one.digest)
        found[name] = answer(replace(plain, adapter=adapter))
    return found


def same_weights(db: Database, version: ModelVersion) -> ModelVersion:
    """The same weights with a default template, as the next version."""
    about = ("model", "runner", "source", "digest", "dtype", "context_window")
    template = DefaultTemplate(
        id="pmpt_1", name="guide", version=1, digest="9" * 64, messages=(ChatMessage(role=Role.SYSTEM, content="Hm."),)
    )
    values = {name: getattr(version, name) for name in about}
    return register_version(db, **values, kept_files=version.files, actor="tests", template=template)


def test_adapters_are_served_with_their_base(
    ours: Bench, folder: Path, version: ModelVersion, start_process: StartProcess
) -> None:
    changes = {"device": "cpu", "kv_pool_tokens": 4096, "max_adapters": 2, "home": HOME}
    worker = start_process(worker_command("base"), worker_environment(ours.settings, changes))
    worker.wait_event("worker_ready")
    adapters = {
        f"a{n}": register_adapter(ours.db, f"a{n}", folder.parent / f"a{n}", "base", actor="tests") for n in range(3)
    }
    values = {name: getattr(version, name) for name in ("runner", "dtype", "context_window")}
    source = str(folder.parent / "a0")
    register_version(
        ours.db, model="lost", source=source, digest="0" * 64, files={}, actor="tests", base=version, **values
    )
    expected = answers(folder, adapters)
    assert len(set(expected.values())) == 4
    with_template = same_weights(ours.db, version)
    assert with_template.base == "base@1"
    alike = ours.new_job(model_version=2, queue=with_template.name, prompt=PROMPT)
    jobs.accept(ours.db, [alike])
    ours.publisher.publish([Hint(alike.id, alike.queue, shadow_name("generate", "base", 2))])
    asked: dict[str, str] = {}
    for turn in range(3):
        for name in expected:
            job = ours.new_job(model=name, queue=f"{name}@1", prompt=PROMPT, priority=turn)
            jobs.accept(ours.db, [job])
            ours.publisher.publish([Hint(job.id, job.queue, shadow_name("generate", name, 1))])
            asked[job.id] = name
    ended = ours.wait_ended(list(asked))
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    assert {asked[job.id]: (job.output or {})["text"] for job in ended} == expected
    (ended_alike,) = ours.wait_ended([alike.id])
    assert (ended_alike.output or {})["text"] == expected["base"], "the weights of the base, loaded once"
    served = {queue_name("base", 1), with_template.name, *(f"{name}@1" for name in adapters)}
    wait_for(lambda: set(presence.read_serving(ours.db)) == served, "each queue has its worker, and the lost one none")
    assert worker.events("adapter_refused")[0]["adapter"] == "lost@1"
    assert worker.events("adapter_evicted"), "two of the three fit"
    assert worker.events("adapters_served")


@pytest.fixture
def fake(db: Database, settings: Settings) -> Iterator[Bench]:
    version = register_version(
        db, model="fake", runner="fake", source="fake", digest="0" * 64, dtype="none", context_window=512, actor="tests"
    )
    bench = Bench(db, settings, version)
    yield bench
    bench.close()


@pytest.mark.full
def test_a_model_without_adapters_also_serves_its_versions_with_templates(
    fake: Bench, start_worker: StartWorker
) -> None:
    with_template = same_weights(fake.db, fake.version)
    start_worker(model=with_template.name)
    job = fake.new_job(model_version=2, queue=with_template.name)
    jobs.accept(fake.db, [job])
    fake.publisher.publish([Hint(job.id, job.queue, shadow_name("generate", "fake", 2))])
    (ended,) = fake.wait_ended([job.id])
    assert ended.state is JobState.SUCCEEDED
    wait_for(lambda: set(presence.read_serving(fake.db)) == {"fake@1", "fake@2"}, "one worker for both")
