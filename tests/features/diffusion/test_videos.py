"""Videos: a real pipeline with random weights over a killed worker, OpenAI's API, and a server of videos that dies."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from headrace.client import Client
from headrace.features.diffusion.video.task import VideoFormat
from headrace.models.catalog import register
from headrace.store.jobs import jobs
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.processes import wait_for
from tests.producer_api.serving import serving
from tests.workers.conftest import Bench, Duties, StartWorker

av = pytest.importorskip("av", reason="the extra `diffusion` is not installed")

URL = "/v1/videos"
ORDER = {"prompt": "a mill by a river", "steps": 150, "seed": 7}


@pytest.fixture
def key(bench: Bench) -> str:
    return api_keys.create_key(bench.db, bench.tenant_id, "all", api_keys.SCOPES - {"admin"}, actor="tests")


@pytest.fixture
def url(bench: Bench, settings: Settings) -> Iterator[str]:
    with serving(settings) as server:
        yield server.url


@pytest.fixture
def api(bench: Bench, url: str, key: str) -> Iterator[httpx2.Client]:
    register(bench.db, "filmer", "fake-video-pipeline", "auto", actor="tests")
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        yield client


def played(content: bytes) -> tuple[str, float, list[np.ndarray]]:
    """The codec, the frames a second and the frames of a video."""
    with av.open(BytesIO(content)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return stream.codec_context.name, float(stream.average_rate), frames


@pytest.mark.timeout(600)
def test_a_killed_worker_s_video_is_that_of_an_undisturbed_run(
    bench: Bench, duties: Duties, url: str, key: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
    from tests.features.diffusion.tiny_video import build_video_pipeline  # noqa: PLC0415 - see above

    register(bench.db, "wan", str(build_video_pipeline(tmp_path / "tiny")), "auto", actor="tests")
    with Client(url, key) as client:

        def submit(**changes: Any) -> str:
            longer = {"size": "128x128", "frames": 33}
            return str(client.submit(task="video_generate", model="wan", input=ORDER | longer | changes)["id"])

        # It dies with its first state, in the middle of the steps: a step waits until a state is due.
        faults = "state.offered=sleep:2500@50,state.saved=kill"
        dying = start_worker(model="wan", environment="test", failpoints=faults, ready=False)
        job = submit()
        assert dying.wait_exit(400) == -signal.SIGKILL, dying.log()
        bench.end_leases()
        start_worker(model="wan")
        told = [event.data["done"] for event in client.stream(job) if event.name == "job.progress"]
        ended, again = client.wait(job), client.wait(submit())
        stopped = submit()
        wait_for(lambda: client.job(stopped).get("progress"), "it has begun")
        client.cancel(stopped)
        late = client.wait(stopped)
        content = httpx2.get(
            f"{url}{ended['output']['files'][0]['url']}", headers={"Authorization": f"Bearer {key}"}
        ).content
    assert (ended["status"], ended["attempt"], again["attempt"], late["status"]) == ("succeeded", 2, 1, "cancelled")
    (made,), (same,) = ended["output"]["files"], again["output"]["files"]
    assert (made["sha256"], made["media_type"]) == (same["sha256"], "video/mp4")
    assert (made["width"], made["height"], made["seconds"]) == (128, 128, 4.125)
    assert min(told) > 1, "steps that were computed are not computed again"
    assert told == sorted(told)
    codec, fps, frames = played(content)
    assert (codec, fps, [frame.shape for frame in frames]) == ("h264", 8, [(128, 128, 3)] * 33)


@pytest.mark.filterwarnings("ignore:The Sora API")
def test_openai_s_client_makes_lists_downloads_and_deletes_videos(
    api: httpx2.Client, url: str, key: str, start_worker: StartWorker
) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    own = {"steps": 40, "seed": 3, "fps": 16, "format": "webm", "negative_prompt": "people"}
    queued = client.videos.create(model="filmer", prompt="a mill", size="64x32", seconds="4", extra_body=own)  # type: ignore[call-overload]  # sizes are the model's own here
    assert (queued.status, queued.progress, queued.size, queued.seconds) == ("queued", 0, "64x32", "4.062")
    with pytest.raises(Exception, match="queued: ask for it until"):
        client.videos.download_content(queued.id)
    start_worker(model="filmer", fake_step_ms=50)
    wait_for(lambda: 0 < client.videos.retrieve(queued.id).progress < 100, "it tells how far it is")
    assert client.videos.retrieve(queued.id).status == "in_progress"
    made = client.videos.poll(queued.id, poll_interval_ms=100)
    assert (made.status, made.progress, made.error, made.prompt) == ("completed", 100, None, "a mill")
    codec, fps, frames = played(client.videos.download_content(queued.id).read())
    assert (codec, fps, len(frames), frames[0].shape) == ("vp9", 16, 65, (32, 64, 3))
    second = client.videos.create_and_poll(model="filmer", prompt="a river", poll_interval_ms=100)
    assert [one.id for one in client.videos.list(limit=1)] == [second.id, queued.id], "page by page"
    assert client.videos.delete(queued.id).deleted
    assert [one.id for one in client.videos.list()] == [second.id]
    with pytest.raises(NotFoundError):
        client.videos.retrieve(queued.id)
    with pytest.raises(NotFoundError):
        client.videos.download_content(queued.id)
    with pytest.raises(BadRequestError, match="`remix` is not supported"):
        client.videos.remix(second.id, prompt="in winter")
    with pytest.raises(BadRequestError, match="`input_reference` is not supported"):
        client.videos.create(model="filmer", prompt="a mill", input_reference=b"a picture")
    picture = api.post("/v1/jobs", json={"model": "filmer", "task": "video_generate", "input": {"prompt": "a"}}).json()
    assert client.videos.retrieve(picture["id"]).prompt == "a", "any job of the task is a video"
    assert api.get(f"{URL}/job_nothing").status_code == 404


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"size": "100x100"}, "size", "multiples of 16, such as 96x96"),
    ({"size": "10000x10000"}, "size", "4194304"),
    ({"size": "1920x1088", "frames": 201}, "size", "at this size 125 frames"),
    ({"size": "large"}, "size", ""),
    ({"frames": 8}, "frames", "4 x n + 1 frames, at most 512, such as 9"),
    ({"frames": 100_000}, "frames", "512"),
    ({"frames": 0}, "frames", ""),
    ({"fps": 500}, "fps", "60"),
    ({"seconds": 3600}, "seconds", "60"),
    ({"seconds": "60", "fps": 60}, "seconds", "512 frames: ask for 8.53333 s at most"),
    ({"seconds": 1, "frames": 9}, "seconds", "not both"),
    ({"seconds": "soon"}, "seconds", ""),
    ({"steps": 10_000}, "steps", "200"),
    ({"guidance": 1000}, "guidance", ""),
    ({"seed": -1}, "seed", ""),
    ({"prompt": ""}, "prompt", ""),
    ({"prompt": "x" * 40_000}, "prompt", "32000"),
    ({"format": "gif"}, "format", "mp4"),
    ({"input_reference": {"image_url": "data:"}}, "input_reference", "prompt alone"),
    ({"steeps": 3}, "steeps", ""),
]


def test_an_order_that_cannot_be_made_is_refused_by_the_name_of_its_field(api: httpx2.Client, bench: Bench) -> None:
    for change, param, words in REFUSED:
        asked = {"model": "filmer", "prompt": "a mill", **change}
        bodies: list[dict[str, Any]] = [{"json": asked}]
        if isinstance(next(iter(change.values())), str | int):
            bodies.append({"files": {name: (None, str(value)) for name, value in asked.items() if value != ""}})
        for body in bodies[: 1 if "" in asked.values() else 2]:
            answer = api.post(URL, **body)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, param), (change, error)
            assert words in error["message"], error
    native = {"task": "video_generate", "model": "filmer", "input": {"prompt": "a mill", "frames": 8}}
    assert api.post("/v1/jobs", json=native).json()["error"]["param"] == "input.frames"
    assert api.post(URL, content=b"--", headers={"content-type": "multipart/form-data"}).status_code == 400
    assert api.get(f"{URL}/x/content", params={"variant": "thumbnail"}).json()["error"]["param"] == "variant"
    assert jobs.list_jobs(bench.db, bench.tenant_id) == []


class VideoServer(ThreadingHTTPServer):
    """OpenAI's videos in memory. ``dies``: it forgets all once, in the middle of the first video."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[bytes] = []
        self.looks: dict[str, int] = {}
        self.num_looks = 1
        self.deleted: list[str] = []
        self.dies = False
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: VideoServer

    def _send(self, status: int, content: bytes | dict[str, Any]) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.server.asked.append(self.rfile.read(int(self.headers["content-length"])))
        video = f"theirs-{len(self.server.asked)}"
        self.server.looks[video] = 0
        self._send(200, {"id": video, "object": "video", "status": "queued", "progress": 0})

    def do_GET(self) -> None:
        video = self.path.split("/")[3]
        if video not in self.server.looks:
            self._send(404, {"error": {"message": f"{video} is not here"}})
        elif self.path.endswith("/content"):
            self._send(200, film("mp4"))
        else:
            self.server.looks[video] += 1
            if self.server.dies and self.server.looks[video] > 1:
                self.server.dies = False
                self.server.looks.clear()
                self.close_connection = True
                return
            is_done = self.server.looks[video] > self.server.num_looks
            self._send(200, {"id": video, "status": "completed" if is_done else "in_progress", "progress": 30})

    def do_DELETE(self) -> None:
        video = self.path.split("/")[3]
        self.server.deleted.append(video)
        self.server.looks.pop(video, None)
        self._send(200, {"id": video, "deleted": True})

    def log_message(self, *_args: object) -> None:
        """Be quiet."""


def film(kind: VideoFormat) -> bytes:
    from headrace.features.diffusion.video.video_work import encoded  # noqa: PLC0415 - an extra

    return encoded([np.full((32, 32, 3), number * 20, np.uint8) for number in range(5)], 8, kind)


@pytest.fixture
def their_server() -> Iterator[VideoServer]:
    server = VideoServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def register_server(bench: Bench, their_server: VideoServer, tmp_path: Path) -> Callable[[str], None]:
    def made(body: str) -> None:
        folder = tmp_path / body
        folder.mkdir()
        config = {"model_type": "headrace-video-server", "url": f"http://127.0.0.1:{their_server.server_port}"}
        config |= {"model": "theirs", "body": body}
        (folder / "config.json").write_text(json.dumps(config))
        register(bench.db, body, str(folder), "auto", actor="tests")

    return made


def test_a_server_of_videos_that_dies_loses_none(
    api: httpx2.Client,
    bench: Bench,
    start_worker: StartWorker,
    their_server: VideoServer,
    register_server: Callable[[str], None],
) -> None:
    register_server("form")
    start_worker(model="form")  # which has tried the server by the task's example
    their_server.asked.clear()
    their_server.deleted.clear()
    their_server.num_looks, their_server.dies = 3, True
    asked = {"model": "form", "prompt": "a mill", "size": "64x32", "frames": 16, "fps": 8, "seed": 1}
    video = api.post(URL, json=asked).json()
    (job,) = bench.wait_ended([video["id"]])
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1), "an attempt that lost its server is not charged"
    assert api.get(f"{URL}/{job.id}/content").content == film("mp4")
    assert len(their_server.asked) == 2
    assert b'name="num_frames"\r\n\r\n16' in their_server.asked[1]
    assert b'name="seconds"\r\n\r\n2' in their_server.asked[1]
    assert their_server.deleted == ["theirs-2"], "nothing of a tenant stays there"
    shown = api.get(f"/v1/jobs/{job.id}").text + api.get(f"/v1/jobs/{job.id}/timeline").text
    assert "theirs-" not in shown + api.get(f"{URL}/{job.id}").text
    their_server.num_looks = 10_000
    stopped = api.post(URL, json=asked).json()["id"]
    wait_for(lambda: api.get(f"{URL}/{stopped}").json()["progress"], "it has begun")
    api.post(f"/v1/jobs/{stopped}/cancel")
    bench.wait_ended([stopped])
    wait_for(lambda: their_server.deleted == ["theirs-2", "theirs-3"], "it is ended there too")


def test_a_killed_worker_s_video_is_not_begun_anew_at_the_server(
    api: httpx2.Client,
    bench: Bench,
    duties: Duties,
    start_worker: StartWorker,
    their_server: VideoServer,
    register_server: Callable[[str], None],
) -> None:
    register_server("json")
    dying = start_worker(model="json", environment="test", failpoints="state.saved=kill")
    their_server.num_looks = 10_000
    video = api.post(URL, json={"model": "json", "prompt": "a windmill"}).json()["id"]
    assert dying.wait_exit(100) == -signal.SIGKILL, dying.log()
    their_server.num_looks = 0
    bench.end_leases()
    start_worker(model="json")
    (job,) = bench.wait_ended([video])
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    (asked,) = [one for one in map(json.loads, their_server.asked) if one["prompt"] == "a windmill"]
    assert (asked["model"], asked["size"], asked["num_frames"], asked["fps"]) == ("theirs", "832x480", 81, 16)
