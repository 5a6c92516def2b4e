"""Images in chats with a server of chat completions: what the server gets, with a real worker and a kill."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from headrace.features.files import files
from headrace.features.files.blob_storage import FolderBlobs
from headrace.models.external_registration import register_external
from headrace.store.calls.ssrf_guard import GuardedClient
from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.payloads.conversation import Image
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import ModelVersion
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from headrace.workers.images.chat_pictures import ChatPictures
from headrace.workers.images.image_source import ImageSource
from headrace.workers.tasks.generate_external import NO_SERVER, load_external_model
from tests.models.external.fake_chat import MODEL, ON_AND_ON, FakeChat
from tests.png import png, url_of
from tests.processes import StartProcess, wait_for
from tests.workers.conftest import Bench, Duties, worker_command, worker_environment
from tests.workers.receiver import Answer, Receiver


@pytest.fixture
def server() -> Iterator[FakeChat]:
    server = FakeChat()
    yield server
    server.close()


@pytest.fixture
def version(db: Database, server: FakeChat) -> ModelVersion:
    spec = EngineSpec(
        kind=EngineKind.OPENAI, url=server.url, served_model=MODEL, context_window=4096, accepts=("images",)
    )
    return register_external(db, "seeing", spec, source=None, tokenizer=None, actor="tests")


def upload(db: Database, blobs: FolderBlobs, tenant_id: str, content: bytes) -> str:
    draft = blobs.create()
    draft.write(content)
    return files.create(db, tenant_id, draft, filename="a.png", purpose=files.Purpose.VISION, most_bytes=1 << 40).id


def parts_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = body["messages"][-1]["content"]
    return parts


@pytest.mark.full
def test_pictures_arrive_bit_for_bit_and_again_after_a_kill(
    db: Database, settings: Settings, version: ModelVersion, server: FakeChat, start_process: StartProcess
) -> None:
    bench = Bench(db, settings, version)
    duties = Duties(bench)
    duties.start()
    environment = worker_environment(settings, {"lease_s": 60})
    file_id = upload(db, FolderBlobs(settings.home / "files"), bench.tenant_id, png(2, 40))
    images = [{"url": url_of(png(1)), "at": len(ON_AND_ON), "detail": "low"}, {"file_id": file_id, "at": 99}]
    message = {"role": "user", "content": f"{ON_AND_ON}a mill", "images": images}
    payload = {"input": {"messages": [message]}, "sampling": {"max_tokens": 100, "temperature": 0}}
    server.step_s = 0.1
    try:
        worker = start_process(worker_command("seeing"), environment)
        (job_id,) = bench.submit(payload=payload)
        wait_for(lambda: server.num_tokens > 20 and len(server.calls) == 2, "text comes, after the trial picture")
        worker.signal(signal.SIGKILL)
        wait_for(lambda: len(server.aborted) == 1, "the server has ended the request of the dead worker")
        bench.end_leases()
        server.step_s = 0.01
        start_process(worker_command("seeing"), environment)
        (job,) = bench.wait_ended([job_id])
    finally:
        duties.stop()
        bench.close()
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert (job.usage or {})["input_tokens"] == 1234, "the server's count"
    sent = [parts for call in server.calls if len(parts := parts_of(call.body)) == 4]
    assert (
        sent
        == [
            [
                {"type": "text", "text": ON_AND_ON},
                {"type": "image_url", "image_url": {"url": url_of(png(1)), "detail": "low"}},
                {"type": "text", "text": "a mill"},
                {"type": "image_url", "image_url": {"url": url_of(png(2, 40))}},
            ]
        ]
        * 2
    )


def test_a_version_is_not_served_by_a_server_that_refuses_a_picture(
    settings: Settings, version: ModelVersion, server: FakeChat
) -> None:
    server.takes_no_images = True
    with pytest.raises(ModelLoadError, match="--accepts images"):
        load_external_model(version, settings, lambda _digest: b"", NO_SERVER)


def test_pictures_of_servers_and_files_are_read_within_the_bounds_or_the_job_fails(
    db: Database, settings: Settings
) -> None:
    opened = Settings(home=settings.home, webhook_allow_http=True, webhook_allow_networks=("127.0.0.0/8",))
    blobs = FolderBlobs(settings.home / "files")
    pictures = ChatPictures(ImageSource(opened, client=GuardedClient(opened)))
    mine, other = api_keys.create_tenant(db, "acme"), api_keys.create_tenant(db, "other")
    receiver = Receiver()
    answers = {"/good": Answer(200, body=png(3)), "/bomb": Answer(200, body=png(3, said=9000))}
    receiver.answer = lambda call: answers.get(call.path, Answer(404))
    try:
        good = Image(url=receiver.url("/good"))
        assert pictures.data_urls(db, mine, [good]) == [url_of(png(3))]
        bad = [
            (Image(url=receiver.url("/bomb")), "invalid_image", "9000 x 9000 pixels"),
            (Image(url=url_of(png(1)[:50])), "invalid_image", "damaged"),
            (Image(url=receiver.url("/gone")), "image_unavailable", "answered 404"),
            (Image(file_id=upload(db, blobs, other, png(1))), "image_unavailable", "does not exist"),
            (Image(file_id=upload(db, blobs, mine, b"a text")), "invalid_image", r"images\[1\]` is no PNG"),
        ]
        for image, code, said in bad:
            with pytest.raises(InvalidRequest, match=said) as caught:
                pictures.data_urls(db, mine, [good, image])
            assert caught.value.code == code
    finally:
        receiver.close()
