"""The programs of ``examples`` do their work with a live server and worker processes."""

import io
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from openai import OpenAI
from PIL import Image
from transformers import ResNetForImageClassification, ViTImageProcessorPil

from examples.chat_assistant.assistant import Assistant, run_tool
from examples.documents_copilot.copilot import ask, index, report
from examples.image_pipeline.describe import described
from examples.image_pipeline.train import SHAPES, SIZE, drawn, train
from examples.thumbnails import make as thumbnails
from examples.vllm_queue.burst import directly, through_the_queue
from examples.vllm_queue.server import SmallServer, small_server
from headrace.client import Client
from headrace.features.encoders.encode_jobs import numbers_of
from headrace.features.encoders.fake_encoders import fake_pixels, fake_scores
from headrace.features.images.classify.inputs import FAKE
from headrace.models.catalog import register
from headrace.models.external_registration import register_external
from headrace.prompts.vision.pictures import read_picture
from headrace.store.db.database import Database
from headrace.store.registry.engine_spec import engine_spec
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.e2e.test_embeddings import worker
from tests.own_tasks import TaskStack, installed
from tests.processes import WAIT_S, StartProcess
from tests.producer_api.serving import serving


@pytest.fixture
def key(db: Database) -> str:
    """A key of a tenant, for everything that a tenant may do."""
    return api_keys.create_key(
        db, api_keys.create_tenant(db, "acme"), "tests", api_keys.SCOPES - {"admin"}, actor="tests"
    )


@contextmanager
def asked(settings: Settings, key: str) -> Iterator[tuple[OpenAI, Client]]:
    with (
        serving(settings) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client,
        Client(server.url, key) as own,
    ):
        yield client, own


def test_the_assistant_calls_a_tool_and_keeps_the_conversation(
    settings: Settings, db: Database, key: str, start_process: StartProcess
) -> None:
    register(db, "writer", "fake", "auto", actor="tests")
    said: list[str] = []
    with asked(settings, key) as (client, _), worker(start_process, settings, "writer"):
        assistant = Assistant(client, "writer", said.append)
        assistant.ask("My name is Ada.")
        assistant.ask("Where is my order?", must_use_tools=True)
        items = client.conversations.items.list(assistant.conversation, order="asc").data
    kinds = [item.type for item in items]
    call = kinds.index("function_call")
    assert kinds[:3] == ["message"] * 3
    assert kinds[call + 1] == "function_call_output"
    assert any(text.startswith("[look_up_order {") for text in said)
    assert "the call failed" in run_tool("look_up_order", '{"order": 1}')


@pytest.mark.full
def test_the_copilot_answers_from_documents_and_names_those_that_it_could_not_read(
    settings: Settings, db: Database, key: str, tmp_path: Path, start_process: StartProcess
) -> None:
    register(db, "writer", "fake", "auto", actor="tests")
    register(db, "vectors", "fake-encoder", "auto", actor="tests")
    (tmp_path / "oven.md").write_text("The oven is heated to 250 degrees before the rye loaves go in.")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    with (
        asked(settings, key) as (client, _),
        worker(start_process, settings, "writer"),
        worker(start_process, settings, "vectors"),
    ):
        store, failed = index(client, tmp_path, "vectors")
        cited = ask(client, store, "How hot is the oven?", "writer")
    assert list(failed) == ["broken.pdf"]
    assert failed["broken.pdf"]
    assert [name for name, _, _ in cited.passages] == ["oven.md"]
    assert "oven.md, from character 0" in report(cited)


def test_the_trained_network_tells_shapes_apart(tmp_path: Path) -> None:
    train(tmp_path, steps=60, seed=1)
    network, processor = ResNetForImageClassification.from_pretrained(tmp_path), ViTImageProcessorPil(size=SIZE)
    drawing = random.Random(3)
    pictures: list[Image.Image] = [Image.open(io.BytesIO(drawn(shape, drawing))) for shape in SHAPES * 4]
    with torch.no_grad():
        best = network(**processor(images=pictures, return_tensors="pt")).logits.argmax(1).tolist()
    assert [SHAPES[number] for number in best] == [*SHAPES * 4]


@pytest.mark.full
def test_pictures_are_classified_and_described(
    settings: Settings, db: Database, key: str, start_process: StartProcess
) -> None:
    register(db, "shapes", "fake-image-classifier", "auto", actor="tests")
    register(db, "writer", "fake", "auto", actor="tests")
    drawing = random.Random(3)
    pictures = [drawn(shape, drawing) for shape in SHAPES]
    expected = [numbers_of(fake_scores(fake_pixels(read_picture(one, "image")), len(FAKE.labels))) for one in pictures]
    with (
        asked(settings, key) as (_, own),
        worker(start_process, settings, "shapes"),
        worker(start_process, settings, "writer"),
    ):
        found = described(own, pictures, "shapes", "writer")
    assert [label for label, _ in found] == [FAKE.labels[scores.index(max(scores))] for scores in expected]
    assert all(text for _, text in found)


@pytest.fixture
def too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small server compute nothing before it has refused a request: callers may come one by one."""
    enter, refused = SmallServer.enter, threading.Event()

    def watched_enter(server: SmallServer) -> bool:
        has_entered = enter(server)
        if has_entered:
            refused.wait(WAIT_S)
        else:
            refused.set()
        return has_entered

    monkeypatch.setattr(SmallServer, "enter", watched_enter)


@pytest.mark.full
def test_a_burst_that_a_server_refuses_is_answered_behind_the_queue(
    settings: Settings, db: Database, key: str, start_process: StartProcess, too_small: None
) -> None:
    with small_server(slots=2) as small:
        alone = directly(small.url, 12)
        refused, small.num_refused = small.num_refused, 0
        engine = engine_spec({"kind": "openai", "url": small.url, "served_model": "small", "context_window": 2048})
        register_external(db, "small", engine, source=None, tokenizer=None, actor="tests")
        with asked(settings, key) as (_, own), worker(start_process, settings, "small", max_slots=2):
            queued = through_the_queue(own, "small", 12)
    assert alone.answered + refused == alone.sent
    assert refused > 0
    assert (queued.answered, small.num_refused, small.most_running) == (12, 0, 2)


def test_thumbnails_are_files_of_a_job(
    settings: Settings, key: str, tmp_path: Path, start_process: StartProcess
) -> None:
    package = installed(tmp_path / "own", "thumbnails = thumbnails_task:TASK")
    stack = TaskStack(settings, start_process, "thumbnails", f"{package}:{Path(thumbnails.__file__).parent}")
    stack.worker()
    told: list[str] = []
    made = thumbnails.make(stack.url, key, drawn("circle", random.Random(3)), [8, 16], told.append)
    sizes = {name: Image.open(io.BytesIO(content)).size for name, content in made.items()}
    assert sizes == {"8.png": (8, 8), "16.png": (16, 16)}
    assert told[-1].startswith("2 of 2")
    with pytest.raises(RuntimeError, match="no PNG, JPEG or WebP"):
        thumbnails.make(stack.url, key, b"no picture", [8], told.append)
