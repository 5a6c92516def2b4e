"""Speech through the API and a worker process: whole, streamed, through a kill, and what is refused."""

import base64
import io
import json
import math
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import numpy as np
import pytest
import soundfile
from openai import BadRequestError, OpenAI

from headrace.features.speech.sentences import pieces_of
from headrace.features.speech.voice_folder import FAKE
from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.processes import wait_for
from tests.producer_api.calling import parse
from tests.producer_api.serving import serving
from tests.workers.conftest import Bench, Duties, StartWorker
from tests.workers.test_continuing import Reader

URL = "/v1/audio/speech"
TEXT = "The mill stands by the river. It is old! 水車は古いです。Nobody knows how old? It grinds, still. The end."
NUM_PIECES = 6


@pytest.fixture
def version(db: Database) -> ModelVersion:
    return register(db, "voice", "fake-voice", "auto", actor="tests")


@pytest.fixture
def key(bench: Bench) -> str:
    return api_keys.create_key(bench.db, bench.tenant_id, "all", api_keys.SCOPES - {"admin"}, actor="tests")


@pytest.fixture
def api(key: str, settings: Settings) -> Iterator[httpx2.Client]:
    with serving(settings) as server:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=server.url, headers=headers, timeout=100) as client:
            yield client


def submit(api: httpx2.Client, **changes: Any) -> str:
    body = {"task": "speech", "model": "voice", "input": {"text": TEXT}, "response_format": "wav", **changes}
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def samples_of(content: bytes) -> np.ndarray:
    """The samples of a file. One whose header says no length is read in blocks."""
    blocks = []
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        assert (file.samplerate, file.channels) == (FAKE.rate, 1)
        while len(block := file.read(4096, dtype="int16")):
            blocks.append(block)
    return np.concatenate(blocks)


def file_of(api: httpx2.Client, job_id: str) -> tuple[dict[str, Any], bytes]:
    """The output of a job that has ended, and the content of its file."""
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert job["status"] == "succeeded", job
    return job["output"], api.get(job["output"]["files"][0]["url"]).content


def test_a_text_becomes_a_file_in_each_format(bench: Bench, api: httpx2.Client, start_worker: StartWorker) -> None:
    ids = {kind: submit(api, response_format=kind) for kind in ("wav", "flac", "pcm", "mp3", "opus")}
    slow = submit(api, speed=0.5)
    start_worker(model="voice", fake_step_ms=0)
    bench.wait_ended([*ids.values(), slow])
    output, content = file_of(api, ids["wav"])
    whole = samples_of(content)
    assert (output["characters"], output["voice"], output["seconds"]) == (len(TEXT), "low", len(whole) / FAKE.rate)
    shown = output["files"][0]
    assert (shown["name"], shown["media_type"], shown["seconds"]) == ("speech.wav", "audio/wav", output["seconds"])
    assert np.sqrt(np.mean(np.square(whole.astype(float)))) > 1000
    assert np.array_equal(whole, samples_of(file_of(api, ids["flac"])[1]))
    assert np.array_equal(whole, np.frombuffer(file_of(api, ids["pcm"])[1], "<i2"))
    for kind in ("mp3", "opus"):
        lossy = samples_of(file_of(api, ids[kind])[1])
        assert len(lossy) == len(whole)
        assert np.corrcoef(lossy, whole)[0, 1] > 0.9
    assert file_of(api, slow)[0]["seconds"] == pytest.approx(2 * output["seconds"], rel=0.01)
    job = bench.job(ids["wav"])
    assert ((job.usage or {})["input_tokens"], job.num_deltas) == (math.ceil(10 * output["seconds"]), 0)
    # Before it is said, the cost is what text and speed foretell.
    assert bench.job(slow).input_tokens == pytest.approx(2 * job.input_tokens, abs=1)


@pytest.mark.timeout(120)
def test_a_killed_worker_is_not_heard(
    bench: Bench, duties: Duties, key: str, api: httpx2.Client, start_worker: StartWorker
) -> None:
    """Readers of both streams have each sample once, and the file is that of a run without a kill."""
    body = {"model": "voice", "input": TEXT, "voice": "high", "response_format": "wav"}
    heard = Reader().read(api, "POST", URL, body)
    wait_for(lambda: api.get("/v1/jobs").json()["data"], "the job is stored")
    job_id = api.get("/v1/jobs").json()["data"][0]["id"]
    events = Reader().read(api, "GET", f"/v1/jobs/{job_id}/events")
    first = start_worker(model="voice", fake_step_ms=400)
    events.wait_for(b"job.delta", 2)
    first.signal(signal.SIGKILL)
    bench.end_leases()
    second = start_worker(model="voice", fake_step_ms=20)
    streamed = samples_of(heard.rest())
    told = parse(events.rest())
    deltas = [event for event in told if event.name == "job.delta"]
    assert [int(event.id.split("-")[1]) for event in deltas] == list(range(1, NUM_PIECES + 1))
    assert "job.restarted" not in [event.name for event in told]
    assert [one.data["done"] for one in told if one.name == "job.progress"][-1] == NUM_PIECES
    assert second.events("attempt_resumes")[0]["num_deltas"] >= 2
    undisturbed = submit(api, voice="high")
    bench.wait_ended([undisturbed])
    (output, content), (again, same) = file_of(api, job_id), file_of(api, undisturbed)
    assert (bench.job(job_id).epoch > 1, bench.job(undisturbed).epoch) == (True, 1)
    assert content == same
    assert output["files"][0]["sha256"] == again["files"][0]["sha256"]
    whole = samples_of(content)
    assert np.array_equal(streamed, whole)
    pieces = [samples_of(base64.b64decode(event.data["audio"])) for event in deltas]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert bench.query("SELECT count(*) AS n FROM job_terminal WHERE job_id = :id", id=job_id)[0].n == 1


def test_the_unmodified_client_of_openai(bench: Bench, key: str, api: httpx2.Client, start_worker: StartWorker) -> None:
    start_worker(model="voice", fake_step_ms=1)
    with OpenAI(base_url=f"{api.base_url}/v1", api_key=key, max_retries=0, timeout=60) as openai:
        asked: dict[str, Any] = {"model": "voice", "voice": "low", "input": TEXT}
        whole = openai.audio.speech.create(**asked, response_format="flac")
        assert whole.response.headers["content-type"] == "audio/flac"
        samples = samples_of(whole.content)
        with openai.audio.speech.with_streaming_response.create(**asked) as streamed:
            assert streamed.headers["content-type"] == "audio/mpeg"
            mp3 = b"".join(streamed.iter_bytes())
        assert len(samples_of(mp3)) == pytest.approx(len(samples), abs=4 * 1152)
        with openai.audio.speech.with_streaming_response.create(
            **asked, response_format="pcm", stream_format="sse"
        ) as told:
            events = [json.loads(line[6:]) for line in told.iter_lines() if line.startswith("data: ")]
        parts = [base64.b64decode(one["audio"]) for one in events[:-1]]
        assert np.array_equal(np.frombuffer(b"".join(parts), "<i2"), samples)
        assert len(parts) >= NUM_PIECES
        tokens = math.ceil(10 * len(samples) / FAKE.rate)
        used = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
        assert events[-1] == {"type": "speech.audio.done", "usage": used}
        with pytest.raises(BadRequestError, match="it has low, high") as refused:
            openai.audio.speech.create(model="voice", voice="alloy", input="Hello.")
        assert refused.value.param == "voice"


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"input": ""}, "input", "1"),
        ({"input": "a" * 4097}, "input", "4096"),
        ({"input": "... !"}, "input", "nothing to say"),
        ({"voice": "nobody"}, "voice", "low, high"),
        ({"response_format": "aac"}, "response_format", "mp3, opus, wav, flac, pcm"),
        ({"response_format": "midi"}, "response_format", "mp3"),
        ({"speed": 0.2}, "speed", "0.25"),
        ({"speed": 5}, "speed", "4"),
        ({"instructions": "whisper"}, "instructions", "leave it out"),
    ],
)
def test_what_cannot_be_said_is_refused(
    bench: Bench, api: httpx2.Client, changes: dict[str, Any], param: str, said: str
) -> None:
    body = {"model": "voice", "voice": "low", "input": "Hello.", **changes}
    answer = api.post(URL, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert said in error["message"]
    assert api.get("/v1/jobs").json()["data"] == []


def test_a_policy_reads_the_text_before_it_is_said(bench: Bench, api: httpx2.Client, start_worker: StartWorker) -> None:
    rules = [
        {"id": "pii", "kinds": ["email"], "action": "redact", "stage": "input"},
        {"id": "names", "deny": {"phrases": ["Project Titan"]}, "action": "block", "stage": "input"},
    ]
    assert api.put("/v1/policies", json={"document": {"version": 1, "rules": rules}}).status_code == 200
    refused = api.post(URL, json={"model": "voice", "input": "Tell them of Project Titan."})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "policy_blocked_input")
    assert api.get("/v1/jobs").json()["data"] == []
    redacted = submit(api, input={"text": "Write to ann@example.com today."})
    plain = submit(api, input={"text": "Write to <EMAIL_1> today."})
    start_worker(model="voice", fake_step_ms=0)
    bench.wait_ended([redacted, plain])
    assert file_of(api, redacted)[1] == file_of(api, plain)[1], "what is said"


def test_a_cancelled_text_ends_at_the_next_piece(bench: Bench, api: httpx2.Client, start_worker: StartWorker) -> None:
    job_id = submit(api)
    start_worker(model="voice", fake_step_ms=500)
    wait_for(lambda: api.get(f"/v1/jobs/{job_id}").json().get("progress"), "it has begun")
    assert api.post(f"/v1/jobs/{job_id}/cancel").status_code in (200, 202)
    (job,) = bench.wait_ended([job_id])
    assert (job.state, job.output) == (JobState.CANCELLED, None)
    assert api.get("/v1/files").json()["data"] == []


def test_pieces_are_bounded_and_lose_nothing_that_is_said() -> None:
    for text in (
        "あ" * 4096,
        "1" * 4096,
        "word " * 800,
        TEXT,
        "a, b; c." * 500,
        "こんにちは。\n\n「はい。」と、言った。",
    ):
        pieces = pieces_of(text)
        assert all(len(piece) <= 200 for piece in pieces)
        assert [char for char in "".join(pieces) if char.isalnum()] == [char for char in text if char.isalnum()]
    assert len(pieces_of(TEXT)) == NUM_PIECES


class SpeechServer(BaseHTTPRequestHandler):
    """OpenAI's URL: so many samples of one value as the text is long. The second answer fails."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append({"path": self.path, **body})
        is_bad = len(self.asked) == 2
        content = b"" if is_bad else np.full(len(body["input"]), 300, "<i2").tobytes()
        self.send_response(503 if is_bad else 200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args: object) -> None:
        """Be quiet."""


def test_a_server_of_speech_is_asked_for_each_piece(
    bench: Bench, key: str, api: httpx2.Client, start_worker: StartWorker, tmp_path: Path
) -> None:
    """What was heard before the server failed is not asked for again."""
    SpeechServer.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), SpeechServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {"model_type": "speech-server", "url": f"http://127.0.0.1:{server.server_port}", "model": "theirs"}
    folder = tmp_path / "voice"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "voices": ["ann", "bob"]}))
    register(bench.db, "remote", str(folder), "auto", actor="tests")
    start_worker(model="remote")
    job_id = submit(api, model="remote", voice="bob", response_format="wav")
    (job,) = bench.wait_ended([job_id])
    server.shutdown()
    server.server_close()
    assert job.state is JobState.SUCCEEDED, job.error
    pieces = pieces_of(TEXT)
    asked = [one["input"] for one in SpeechServer.asked]
    assert asked == [pieces[0], pieces[1], *pieces[1:]]
    first = SpeechServer.asked[0]
    assert (first["path"], first["model"], first["voice"], first["response_format"]) == (
        "/v1/audio/speech",
        "theirs",
        "bob",
        "pcm",
    )
    assert samples_of(file_of(api, job_id)[1]).max() == 300
