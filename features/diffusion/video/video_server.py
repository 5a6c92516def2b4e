"""Videos by a server with OpenAI's ``/v1/videos``, such as vLLM-Omni or SGLang. Its ids and its words are not shown.

    create ──▶ its id, saved as the state of the attempt ──▶ asked for until it has ended ──▶ content ──▶ deleted there

A server that is away or full fails the attempt, which is not charged. The next attempt goes on with the video that the
last one has begun, as long as the server knows it. A video of a job that is cancelled is deleted there.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import httpx2
import orjson

from headrace.features.diffusion.pictures import size_of
from headrace.features.diffusion.video.task import MEDIA_TYPES, VideoOrder, VideoOutput, output_of
from headrace.features.diffusion.video.video_folder import VideoServer
from headrace.models.external.upstream import UpstreamBusy, UpstreamFailed, UpstreamLost
from headrace.store.settings import Settings
from headrace.tasks import Context, JobOver, TaskError

SERVER_TIMEOUT_S: Final = 6 * 3600.0
_ANSWER_S: Final = 60.0
_LOOK_S: Final = 1.0
_MAX_OBJECT_BYTES: Final = 1 << 20
_MAX_VIDEO_BYTES: Final = 1 << 30
_BUSY: Final = 429
_MISSING: Final = 404
_FAILED: Final = 500
_OK: Final = 300
_MOST_ID_CHARS: Final = 200
_OPEN: Final = ("queued", "in_progress")


def server_runner(server: VideoServer, settings: Settings) -> Callable[..., Any]:
    """Return the runner of a server. Many threads call it."""
    headers = {"authorization": f"Bearer {settings.engine_api_key}"} if settings.engine_api_key else {}
    client = httpx2.Client(base_url=f"{server.url}/v1", timeout=_ANSWER_S, headers=headers)

    def run(batch: Sequence[VideoOrder], contexts: Sequence[Context]) -> list[VideoOutput]:
        return [_made(client, server, *one) for one in zip(batch, contexts, strict=True)]

    return run


def _made(client: httpx2.Client, server: VideoServer, order: VideoOrder, context: Context) -> VideoOutput:
    context.progress(0, 100)
    video = _begun_before(client, context) or _create(client, server, order)
    try:
        _wait(client, video, context)
        content = _sent(client, "GET", f"/videos/{video}/content", most=_MAX_VIDEO_BYTES)
        kind = _kind_of(content)
        facts = dict(zip(("width", "height"), size_of(order.size) or (), strict=False))
        found = output_of(order, order.size or "", order.frames or 1, order.steps or 0)
        context.file(f"video.{kind}", content, MEDIA_TYPES[kind], **facts, seconds=found.seconds)
    except (JobOver, TaskError):
        _forget(client, video)
        raise
    _forget(client, video)
    return found


def _begun_before(client: httpx2.Client, context: Context) -> str | None:
    """Return the id of the video that an attempt before has begun, if it is of use."""
    if context.resumed is None:
        return None
    video = context.resumed.decode()
    found = _status(client, video)
    return None if found is None or found[0] not in (*_OPEN, "completed") else video


def _create(client: httpx2.Client, server: VideoServer, order: VideoOrder) -> str:
    frames, fps = order.frames or 1, order.fps or 1
    fields: dict[str, Any] = {"model": server.model, "prompt": order.prompt, "size": order.size}
    fields |= {"num_frames": frames, "fps": fps, "seconds": max(1, round(frames / fps))}
    fields |= {"num_inference_steps": order.steps, "guidance_scale": order.guidance, "seed": order.seed}
    fields |= {"negative_prompt": order.negative_prompt}
    given = {name: value for name, value in fields.items() if value is not None}
    if server.body == "json":
        answer = _sent(client, "POST", "/videos", json=given)
    else:
        form = {name: (None, str(value)) for name, value in given.items()}
        answer = _sent(client, "POST", "/videos", files=form)
    video = _object(answer).get("id")
    if not isinstance(video, str) or not 0 < len(video) <= _MOST_ID_CHARS or not set(video).isdisjoint("/?#%. "):
        raise TaskError("the server of videos answered without an id")
    return video


def _wait(client: httpx2.Client, video: str, context: Context) -> None:
    """Return when the video is complete, and tell how far it is. Raises JobOver soon after a cancel."""
    is_saved = False

    def state() -> bytes:
        nonlocal is_saved
        is_saved = True
        return video.encode()

    while True:
        found = _status(client, video)
        if found is None:
            raise UpstreamLost("the server of videos has lost the video")
        status, progress = found
        if status == "completed":
            return
        if status not in _OPEN:
            raise UpstreamFailed("the server of videos could not make the video")
        context.progress(min(progress, 99), 100)
        if not is_saved:
            context.checkpoint(state)
        time.sleep(_LOOK_S)


def _status(client: httpx2.Client, video: str) -> tuple[str, float] | None:
    """Return the status of a video and how much is done, 0 to 100; None if the server does not know it."""
    answer = _sent(client, "GET", f"/videos/{video}", may_miss=True)
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


def _forget(client: httpx2.Client, video: str) -> None:
    with suppress(httpx2.HTTPError):
        client.delete(f"/videos/{video}", timeout=_LOOK_S)


def _sent(
    client: httpx2.Client,
    method: str,
    path: str,
    *,
    most: int = _MAX_OBJECT_BYTES,
    may_miss: bool = False,
    **body: Any,
) -> Any:
    """Return the bytes of an answer; None for a 404 that ``may_miss``. Raises UpstreamLost, UpstreamBusy, TaskError."""
    try:
        with client.stream(method, path, **body) as answer:
            if answer.status_code == _MISSING and may_miss:
                return None
            if answer.status_code == _MISSING and method == "GET":
                raise UpstreamLost("the server of videos has lost the video")
            if answer.status_code == _BUSY or answer.status_code >= _FAILED:
                raise UpstreamBusy(f"the server of videos answered {answer.status_code}")
            if answer.status_code >= _OK:
                raise TaskError(f"the server of videos refused the request with {answer.status_code}")
            found = bytearray()
            for block in answer.iter_bytes():
                found += block
                if len(found) > most:
                    raise TaskError(f"the answer of the server of videos is over {most} bytes")
            return bytes(found)
    except httpx2.HTTPError as error:
        raise UpstreamLost(f"the server of videos gave no answer: {type(error).__name__}") from error
