"""Videos by a server with OpenAI's ``/v1/videos``, such as vLLM-Omni or SGLang. Its ids and its words are not shown.

    create ──▶ its id, saved as the state of the attempt ──▶ asked for until it has ended ──▶ content ──▶ deleted there

A server that is away or full fails the attempt, which is not charged. The next attempt goes on with the video that the
last one has begun, as long as the server knows it. A video of a job that is cancelled is deleted there.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson

from headrace.features.diffusion.pictures import size_of
from headrace.features.diffusion.video.task import MEDIA_TYPES, VideoOrder, VideoOutput, output_of
from headrace.features.diffusion.video.video_folder import VideoServer
from headrace.models.engine.requests import EngineError
from headrace.models.external.media_server import MediaServer
from headrace.models.external.upstream import UpstreamFailed, UpstreamLost
from headrace.store.settings import Settings
from headrace.tasks import Context, TaskError

SERVER_TIMEOUT_S: Final = 6 * 3600.0
_ANSWER_S: Final = 60.0
_LOOK_S: Final = 1.0
_MAX_OBJECT_BYTES: Final = 1 << 20
_MAX_VIDEO_BYTES: Final = 1 << 30
_MOST_ID_CHARS: Final = 200
_LOST: Final = "the server of videos has lost the video"
_OPEN: Final = ("queued", "in_progress")


def server_runner(server: VideoServer, settings: Settings) -> Callable[..., Any]:
    """Return the runner of a server. Many threads call it."""
    client = MediaServer(server.url, "videos", settings, _ANSWER_S)

    def run(batch: Sequence[VideoOrder], contexts: Sequence[Context]) -> list[VideoOutput]:
        return [_made(client, server, *one) for one in zip(batch, contexts, strict=True)]

    return run


def _made(client: MediaServer, server: VideoServer, order: VideoOrder, context: Context) -> VideoOutput:
    context.progress(0, 100)
    video = _begun_before(client, context) or _create(client, server, order)
    try:
        _wait(client, video, context)
        content = client.ask("GET", f"/videos/{video}/content", _MAX_VIDEO_BYTES)
        if content is None:
            raise UpstreamLost(_LOST)
        kind = _kind_of(content)
        facts = dict(zip(("width", "height"), size_of(order.size) or (), strict=False))
        found = output_of(order, order.size or "", order.frames or 1, order.steps or 0)
        context.file(f"video.{kind}", content, MEDIA_TYPES[kind], **facts, seconds=found.seconds)
    except Exception as error:
        if not getattr(error, "retryable", False):
            _forget(client, video)
        raise
    _forget(client, video)
    return found


def _begun_before(client: MediaServer, context: Context) -> str | None:
    """Return the id of the video that an attempt before has begun, if it is of use."""
    if context.resumed is None:
        return None
    video = context.resumed.decode()
    found = _status(client, video)
    return None if found is None or found[0] not in (*_OPEN, "completed") else video


def _create(client: MediaServer, server: VideoServer, order: VideoOrder) -> str:
    frames, fps = order.frames or 1, order.fps or 1
    fields: dict[str, Any] = {"model": server.model, "prompt": order.prompt, "size": order.size}
    fields |= {"num_frames": frames, "fps": fps, "seconds": max(1, round(frames / fps))}
    fields |= {"num_inference_steps": order.steps, "guidance_scale": order.guidance, "seed": order.seed}
    fields |= {"negative_prompt": order.negative_prompt}
    given = {name: value for name, value in fields.items() if value is not None}
    if server.body == "json":
        body: dict[str, Any] = {"json": given}
    else:
        body = {"files": {name: (None, str(value)) for name, value in given.items()}}
    answer = client.order("/videos", _MAX_OBJECT_BYTES, **body)
    video = _object(answer).get("id")
    if not isinstance(video, str) or not 0 < len(video) <= _MOST_ID_CHARS or not set(video).isdisjoint("/?#%. "):
        raise TaskError("the server of videos answered without an id")
    return video


def _wait(client: MediaServer, video: str, context: Context) -> None:
    """Return when the video is complete, and tell how far it is. Raises JobOver soon after a cancel."""
    is_saved = False

    def state() -> bytes:
        nonlocal is_saved
        is_saved = True
        return video.encode()

    while True:
        found = _status(client, video)
        if found is None:
            raise UpstreamLost(_LOST)
        status, progress = found
        if status == "completed":
            return
        if status not in _OPEN:
            raise UpstreamFailed("the server of videos could not make the video")
        context.progress(min(progress, 99), 100)
        if not is_saved:
            context.checkpoint(state)
        time.sleep(_LOOK_S)


def _status(client: MediaServer, video: str) -> tuple[str, float] | None:
    """Return the status of a video and how much is done, 0 to 100; None if the server does not know it."""
    answer = client.ask("GET", f"/videos/{video}", _MAX_OBJECT_BYTES)
    if answer is None:
        return None
    found = _object(answer)
    progress = found.get("progress")
    return str(found.get("status")), progress if isinstance(progress, int | float) else 0


def _object(answer: bytes) -> dict[str, Any]:
    with suppress(orjson.JSONDecodeError):
        found = orjson.loads(answer)
        if isinstance(found, dict):
            return found
    raise TaskError("the answer of the server of videos is no JSON object")


def _kind_of(content: bytes) -> str:
    if content[4:8] == b"ftyp":
        return "mp4"
    if content.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm"
    raise TaskError("the server of videos sent neither MP4 nor WebM")


def _forget(client: MediaServer, video: str) -> None:
    with suppress(EngineError):
        client.ask("DELETE", f"/videos/{video}", _MAX_OBJECT_BYTES, timeout=_LOOK_S)
