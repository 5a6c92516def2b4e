"""Transcripts: through the API and a worker without weights, and held to the model of transformers."""

import json
import os
import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from sqlalchemy import Row, text
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from headrace.features.files.blob_storage import open_blobs
from headrace.features.transcribe.fake_transcriber import FakeTranscriber
from headrace.features.transcribe.model import TranscribeModel
from headrace.features.transcribe.torch_transcriber import transcriber_for
from headrace.features.transcribe.transcriber_folder import FAKE
from headrace.features.transcribe.transcription import ChunkOptions, ChunkTranscript
from headrace.models.catalog import register
from headrace.models.engine.requests import EncodeRequest, EncodeRow
from headrace.models.families.model_folder import describe, small_files
from headrace.prompts.tokenizer import ByteTokenizer, load_tokenizer
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.registry.models import ModelVersion
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from headrace.workers.tasks.self_test import run_all
from headrace.workers.tasks.task_model import quiet_setup
from headrace.workers.worker_runtime import WorkerRuntime
from tests.models.tiny_whisper import RATE, WINDOW_S, build_whisper
from tests.processes import wait_for
from tests.producer_api.serving import serving
from tests.readme import here
from tests.signals import audio_file, spoken, ten_hours, tone
from tests.workers.tasks.test_encoding import linux_only

URL = "/v1/audio/transcriptions"


@dataclass
class Stand:
    """A server, a key of it, and a worker whose transcriber says how long and how loud each chunk is."""

    api: httpx2.Client
    openai: OpenAI
    db: Database
    tenant_id: str
    other: httpx2.Client
    paused: threading.Event
    passes: list[Callable[[], None]]
    revoke: Callable[[str], None]

    def upload(self, content: bytes, api: httpx2.Client | None = None) -> str:
        made = (api or self.api).post("/v1/files", files={"file": ("a.wav", content)}, data={"purpose": "user_data"})
        assert made.status_code == 200, made.text
        return str(made.json()["id"])

    def read(self, select: str, job_id: str) -> Sequence[Row[Any]]:
        """Return the rows of an attempt that has ended."""
        ended = "job_id IN (SELECT job_id FROM attempts WHERE job_id = :id AND ended_at IS NOT NULL)"
        with self.db.begin() as connection:
            return connection.execute(text(f"{select} WHERE {ended}"), {"id": job_id}).all()

    def num_files(self) -> int:
        return len(self.api.get("/v1/files").json()["data"])

    def jobs(self) -> list[jobs.Job]:
        return list(jobs.list_jobs(self.db, self.tenant_id))


@pytest.fixture
def stand(db: Database, settings: Settings) -> Iterator[Stand]:
    version = register(db, "ears", "fake-transcriber", "auto", actor="tests")
    passes: list[Callable[[], None]] = []  # what the next passes do first
    ears = FakeTranscriber(step_s=1.0, sleep=lambda _s: passes and passes.pop(0)())
    model = TranscribeModel(version, ears, ByteTokenizer(), FAKE, open_blobs(settings), 4)
    tenants = [api_keys.create_tenant(db, name) for name in ("acme", "globex")]
    keys = [api_keys.create_key(db, one, "all", api_keys.SCOPES - {"admin"}, actor="tests") for one in tenants]
    patient = settings.model_copy(update={"lease_s": 60})
    runtime = WorkerRuntime(patient, model, owner="ears-1", max_jobs=16, exit_now=lambda _code: None)
    stopped, paused = threading.Event(), threading.Event()

    def work() -> None:
        """Run what was accepted, as Celery's messages would have it run."""
        while not stopped.wait(0.02):
            for job in () if paused.is_set() else jobs.list_jobs(db, tenants[0], state=JobState.QUEUED):
                runtime.job_runner.run(job.id)

    with serving(settings.model_copy(update={"max_audio_bytes": 8 << 20})) as server:
        clients = [
            httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) for key in keys
        ]
        runtime.start()
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        with OpenAI(base_url=f"{server.url}/v1", api_key=keys[0], max_retries=0, timeout=60) as openai:
            yield Stand(clients[0], openai, db, tenants[0], clients[1], paused, passes, runtime.revoke)
        stopped.set()
        worker.join()
        runtime.stop()
        for client in clients:
            client.close()


def said(*chunks: tuple[int, int]) -> str:
    return "".join(f" {length} ms at {level}." for length, level in chunks).strip()


def test_audio_is_not_in_the_memory_of_the_api(stand: Stand, tmp_path: Path) -> None:
    """Neither while it comes nor while its job waits."""
    stand.paused.set()
    path = tmp_path / "talk.wav"
    path.write_bytes(audio_file(tone(250, RATE)))
    num_bytes = path.stat().st_size
    answers: list[int] = []

    def send(stream: str) -> None:
        with path.open("rb") as content:  # the client sends it block by block
            files = {"file": ("talk.wav", content)}
            answers.append(stand.api.post(URL, files=files, data={"model": "ears", "stream": stream}).status_code)

    waiting = [threading.Thread(target=send, args=(stream,)) for stream in ("true", "false")]
    tracemalloc.start()
    try:
        for thread in waiting:
            thread.start()
        wait_for(lambda: len(stand.jobs()) == len(waiting), "both jobs are stored")
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most_bytes < len(waiting) * num_bytes
    assert answers == []
    stand.paused.clear()
    for thread in waiting:
        thread.join()
    assert answers == [200, 200]


def test_the_official_client_reads_every_format(stand: Stand) -> None:
    audio = audio_file(spoken([20, 20, 15], RATE, pause_s=1), kind="FLAC")
    send = stand.openai.audio.transcriptions.create
    short: Any = send(model="ears", file=("talk.flac", audio))
    starts = [0.0, 20.5, 41.5, 57.0 + 1]
    text = said((20_500, 50), (21_000, 50), (16_500, 50))
    assert (short.text, short.usage.type, short.usage.seconds) == (text, "duration", 58)
    long: Any = send(
        model="ears",
        file=("talk.flac", audio),
        response_format="verbose_json",
        language="de",
        timestamp_granularities=["segment"],
    )
    assert (long.text, long.language, long.duration, long.task) == (text, "de", 58.0, "transcribe")
    assert [(one.id, one.start, one.end) for one in long.segments] == [
        (at, starts[at], starts[at + 1]) for at in range(3)
    ]
    assert "".join(one.text for one in long.segments) == text
    assert send(model="ears", file=audio, response_format="text") == text + "\n"
    srt: Any = send(model="ears", file=audio, response_format="srt")
    assert srt.splitlines()[:6] == [
        "1",
        "00:00:00,000 --> 00:00:20,500",
        "20500 ms at 50.",
        "",
        "2",
        "00:00:20,500 --> 00:00:41,500",
    ]
    vtt: Any = send(model="ears", file=audio, response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:20.500\n20500 ms at 50.\n")
    events: list[Any] = list(send(model="ears", file=audio, stream=True))
    assert [one.type for one in events] == [*["transcript.text.delta"] * 3, "transcript.text.done"]
    assert "".join(one.delta for one in events[:-1]) == events[-1].text == text
    assert events[-1].usage.total_tokens > events[-1].usage.input_tokens == 58 * 50


def test_without_the_extra_an_upload_says_what_to_install(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "headrace.features.transcribe.audio_file", raising=False)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    answer = stand.api.post(URL, files={"file": ("a.wav", audio_file(tone(1, RATE)))}, data={"model": "ears"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_audio", "file")
    assert "soundfile is missing: install Headrace with the extra `audio`" in error["message"]
    assert (stand.num_files(), stand.jobs()) == (0, [])


def test_what_is_refused_is_not_stored(stand: Stand) -> None:
    wav = audio_file(tone(1, RATE))
    cases: list[tuple[bytes, dict[str, str], str, str]] = [
        (b"RIFF but only a text " * 99, {}, "unsupported_audio", "file"),
        (wav[: len(wav) // 2], {}, "audio_truncated", "file"),
        (audio_file(tone(0, RATE)), {}, "audio_empty", "file"),
        (ten_hours(), {}, "audio_too_long", "file"),
        (wav, {"prompt": "Names: Ulla"}, "unsupported_parameter", "prompt"),
        (wav, {"temperature": "0.4"}, "unsupported_parameter", "temperature"),
        (wav, {"language": "xx"}, "invalid_value", "language"),
        (wav, {"language": "english"}, "invalid_value", "language"),
        (wav, {"response_format": "mp3"}, "invalid_value", "response_format"),
        (wav, {"response_format": "srt", "stream": "true"}, "unsupported_parameter", "response_format"),
        (wav, {"timestamp_granularities[]": "word"}, "unsupported_parameter", "timestamp_granularities"),
        (wav, {"include[]": "logprobs"}, "unsupported_parameter", "include"),
        (wav, {"modle": "ears"}, "unsupported_parameter", "modle"),
        (wav, {"job[priority]": "12"}, "invalid_value", "job.priority"),
        (wav, {"file_id": "file_1"}, "invalid_value", "file_id"),
    ]
    for content, fields, code, param in cases:
        answer = stand.api.post(URL, files={"file": ("a.wav", content)}, data={"model": "ears", **fields})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, code, param), (fields, error)
    big = stand.api.post(URL, files={"file": ("a.wav", bytes(9 << 20))}, data={"model": "ears"})
    assert big.status_code == 413
    missing = stand.api.post(URL, files={"file": ("a.wav", wav)}, data={"model": "none"})
    assert missing.status_code == 404
    with pytest.raises(BadRequestError, match="multipart"):
        stand.openai.post(URL.removeprefix("/v1"), cast_to=object, body={"model": "ears"})
    assert (stand.num_files(), stand.jobs()) == (0, [])
    # A neighbour is not disturbed.
    assert stand.openai.audio.transcriptions.create(model="ears", file=wav).text == said((1000, 50))


def test_the_audio_goes_with_the_input_of_its_job(stand: Stand) -> None:
    wav = audio_file(tone(1, RATE))
    key = {"Idempotency-Key": "once"}
    first, again = (
        stand.api.post(URL, files={"file": ("a.wav", wav)}, data={"model": "ears"}, headers=key) for _ in range(2)
    )
    assert first.headers["x-job-id"] == again.headers["x-job-id"]
    assert again.headers["idempotent-replayed"] == "true"
    other = stand.api.post(
        URL, files={"file": ("a.wav", audio_file(tone(2, RATE)))}, data={"model": "ears"}, headers=key
    )
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    kept = stand.upload(wav)
    assert stand.num_files() == 2, "one of the job, one of its own"
    job_id = first.headers["x-job-id"]
    assert stand.api.delete(f"/v1/jobs/{job_id}").status_code in (200, 204)
    assert [one["id"] for one in stand.api.get("/v1/files").json()["data"]] == [kept]


def test_a_native_job_and_a_line_name_a_file_of_their_tenant(stand: Stand) -> None:
    silent = np.zeros(RATE * 3, np.float32)
    ours = stand.upload(audio_file(np.concatenate([silent, tone(1, RATE)])))
    theirs = stand.upload(audio_file(tone(1, RATE)), stand.other)
    text = stand.upload(b"not audio")
    body = {"task": "transcribe", "model": "ears"}
    for file_id, status in ((theirs, 404), ("file_0", 404), (text, 400)):
        refused = stand.api.post("/v1/jobs", json={**body, "input": {"file_id": file_id}})
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, "input.file_id"), refused.text
    made = stand.api.post("/v1/jobs", json={**body, "input": {"file_id": ours}}).json()
    done = stand.api.get(f"/v1/jobs/{made['id']}?wait=30").json()
    assert done["output"] == {
        "text": said((4000, 50)),
        "duration": 4.0,
        "language": "en",
        "segments": [{"start": 0.0, "end": 4.0, "text": said((4000, 50))}],
    }
    assert (done["usage"]["input_tokens"], done["usage"]["output_tokens"]) == (200, len(" 4000 ms at 50."))
    ended = batch_of(
        stand, {"file_id": ours}, {"file_id": ours, "response_format": "verbose_json"}, {"file_id": theirs}
    )
    found = [json.loads(one) for one in stand.api.get(f"/v1/files/{ended['output_file_id']}/content").text.splitlines()]
    assert [one["response"]["body"]["text"] for one in found] == [said((4000, 50))] * 2
    (refusal,) = stand.api.get(f"/v1/files/{ended['error_file_id']}/content").text.splitlines()
    assert json.loads(refusal)["response"]["status_code"] == 404
    for wrong, param in (({"file_id": ours, "response_format": "srt"}, "response_format"), ({}, "file_id")):
        (error,) = batch_of(stand, wrong)["errors"]["data"]
        assert (error["line"], error["param"]) == (1, f"body.{param}")


def test_the_examples_of_the_page_run(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = audio_file(tone(3, RATE), kind="FLAC")
    (tmp_path / "speech.flac").write_bytes(audio)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_API_KEY", stand.openai.api_key)
    file_id = stand.upload(audio)
    page = (Path(__file__).parents[3] / "docs" / "audio.md").read_text()
    page = here(page, str(stand.api.base_url), stand.openai.api_key).replace("whisper", "ears")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", re.sub(r"file_\w{32}", file_id, page), re.MULTILINE | re.DOTALL)
    command, program, native, line = [text for _, text in blocks if "headrace register" not in text]
    found = subprocess.run(["sh", "-c", command], capture_output=True, check=True, text=True, timeout=60)
    assert json.loads(found.stdout) == {"text": said((3000, 50)), "usage": {"type": "duration", "seconds": 3}}
    shown: list[tuple[Any, ...]] = []
    exec(compile(program, "docs/audio.md", "exec"), {"print": lambda *words: shown.append(words)})
    assert shown == [(0.0, 3.0, said((3000, 50)))]
    job = stand.api.post("/v1/jobs", json=json.loads(native))
    assert job.status_code == 202, job.text
    ended = batch_of(stand, json.loads(line)["body"])
    assert ended["request_counts"]["completed"] == 1


def batch_of(stand: Stand, *bodies: dict[str, Any]) -> dict[str, Any]:
    """A batch of these transcriptions, once it has ended."""
    lines = [
        {"custom_id": str(at), "method": "POST", "url": URL, "body": {"model": "ears", **body}}
        for at, body in enumerate(bodies)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = stand.api.post("/v1/files", files={"file": ("b.jsonl", content)}, data={"purpose": "batch"}).json()
    asked = {"input_file_id": file["id"], "endpoint": URL, "completion_window": "24h"}
    batch_id = stand.api.post("/v1/batches", json=asked).json()["id"]

    def read() -> dict[str, Any]:
        return dict(stand.api.get(f"/v1/batches/{batch_id}").json())

    wait_for(lambda: read()["status"] in ("completed", "failed"), "the batch ends")
    return read()


def test_a_policy_reads_the_transcript(stand: Stand) -> None:
    """What it takes out is in no text, in no event and in no segment."""
    rule = {"id": "length", "deny": {"phrases": ["21500 ms"]}, "action": "mask", "stage": "output"}
    made = stand.api.put("/v1/policies", json={"document": {"version": 1, "rules": [rule]}})
    assert made.status_code == 200, made.text
    file_id = stand.upload(audio_file(spoken([20, 20], RATE, pause_s=1), kind="FLAC"))
    body = {"task": "transcribe", "model": "ears", "input": {"file_id": file_id}}
    job_id = stand.api.post("/v1/jobs", json=body).json()["id"]
    output = stand.api.get(f"/v1/jobs/{job_id}?wait=30").json()["output"]
    assert "20500 ms" in output["text"]
    assert [one["text"] for one in output["segments"]] == [output["text"]]
    events = stand.api.get(f"/v1/jobs/{job_id}/events").text
    assert "20500 ms" in events
    for shown in (json.dumps(output), events):
        assert "21500" not in shown
    assert [hit["rule"] for hit in output["policy"]] == ["length"]


def test_what_a_policy_may_take_out_is_not_kept_for_the_next_attempt(stand: Stand) -> None:
    def fails() -> None:
        stand.paused.set()
        raise RuntimeError("a fault of the device")

    rule = {"id": "length", "deny": {"phrases": ["20500 ms"]}, "action": "mask", "stage": "output"}
    made = stand.api.put("/v1/policies", json={"document": {"version": 1, "rules": [rule]}})
    assert made.status_code == 200, made.text
    file_id = stand.upload(audio_file(spoken([20, 20], RATE, pause_s=1), kind="FLAC"))
    body = {"task": "transcribe", "model": "ears", "input": {"file_id": file_id}}
    # A pass that fails is tried once more, with each of its rows alone.
    stand.passes[:] = [lambda: None, fails, fails]
    job_id = stand.api.post("/v1/jobs", json=body).json()["id"]
    wait_for(lambda: stand.read("SELECT outcome FROM attempts", job_id), "the second chunk fails")
    assert stand.read("SELECT deltas FROM job_checkpoints", job_id) == []
    stand.passes.clear()
    stand.paused.clear()
    output = stand.api.get(f"/v1/jobs/{job_id}?wait=30").json()["output"]
    assert ("20500 ms" in output["text"], "21500 ms" in output["text"]) == (False, True)


def test_a_cancel_in_the_last_pass_of_a_window_ends_the_job(stand: Stand) -> None:
    file_id = stand.upload(audio_file(spoken([20, 20, 20], RATE, pause_s=1), kind="FLAC"))
    stand.passes[:] = [lambda: stand.revoke(stand.jobs()[0].id)]
    body = {"task": "transcribe", "model": "ears", "input": {"file_id": file_id}}
    job_id = stand.api.post("/v1/jobs", json=body).json()["id"]
    ended = stand.api.get(f"/v1/jobs/{job_id}?wait=30").json()
    assert (ended["status"], stand.passes) == ("cancelled", [])


def test_what_only_the_worker_finds_fails_one_job(stand: Stand) -> None:
    flac = audio_file(tone(25, RATE), kind="FLAC")
    damaged = flac[:2000] + bytes(4000) + flac[6000:]
    stand.paused.set()
    ids = {}
    for name, content in (("gone", flac), ("damaged", damaged), ("good", flac)):
        file_id = stand.upload(content)
        body = {"task": "transcribe", "model": "ears", "input": {"file_id": file_id}}
        ids[name] = stand.api.post("/v1/jobs", json=body).json()["id"]
        if name == "gone":
            assert stand.api.delete(f"/v1/files/{file_id}").status_code == 200
    stand.paused.clear()
    ended = {name: stand.api.get(f"/v1/jobs/{job_id}?wait=30").json() for name, job_id in ids.items()}
    assert ended["good"]["output"]["text"] == said((25_000, 50))
    assert {name: (one.get("error") or {}).get("code") for name, one in ended.items()} == {
        "gone": "file_gone",
        "damaged": "audio_truncated",
        "good": None,
    }


def test_chunks_become_what_transformers_says_of_each_alone(tmp_path: Path) -> None:
    """Chunks of several requests in one pass: the same text, times and languages as each alone."""
    folder = build_whisper(tmp_path / "model")
    found = describe(folder)
    assert (found.runner, found.context_window) == ("transcriber", WINDOW_S * 50)
    transcriber = transcriber_for(folder, Settings(torch_threads=1))
    sounds = [tone(WINDOW_S * share, RATE, hz=hz) for share, hz in ((1, 200), (0.8, 300), (0.5, 700), (0.2, 1500))]
    languages = [None, "de", "en", None]
    rows = [
        EncodeRow(f"job {at}", (0,) * found.context_window, ChunkOptions((sound.tobytes(),), language))
        for at, (sound, language) in enumerate(zip(sounds, languages, strict=True))
    ]
    ours = [ChunkTranscript.from_bytes(one) for one in transcriber.run(rows)]
    tokenizer = load_tokenizer(small_files(folder))
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    features = WhisperFeatureExtractor.from_pretrained(folder)
    spell = WhisperTokenizer.from_pretrained(folder).decode
    for sound, language, one in zip(sounds, languages, ours, strict=True):
        asked = {"task": "transcribe"} | ({} if language is None else {"language": language})
        made = features(sound, sampling_rate=RATE, return_tensors="pt").input_features
        theirs = model.generate(made, return_timestamps=True, **asked)[0]
        assert "".join(tokenizer.decode(each.tokens) for each in one.segments) == spell(
            theirs, skip_special_tokens=True
        )
        assert language in (None, {258: "en", 259: "de"}[one.language_id])
    assert len({one.segments for one in ours}) > 1, "the model hears no difference"


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
