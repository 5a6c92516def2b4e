"""Pictures by a server with OpenAI's images API, such as vLLM-Omni or SGLang. Its ids and its words are not shown.

A request to it is made once in an attempt. A server that is away or full fails the attempt, which is not charged.
"""

import binascii
import threading
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import Any, Final

import httpx2
import orjson

from headrace.features.diffusion.model_folder import ImageServer
from headrace.features.diffusion.picture_work import Source, source_of
from headrace.features.diffusion.pictures import MEDIA_TYPES, PictureOrder, PictureOutput
from headrace.models.external.upstream import UpstreamBusy, UpstreamLost
from headrace.prompts.vision.pictures import read_picture, written
from headrace.store.errors import HeadraceError
from headrace.store.settings import Settings
from headrace.tasks import Context, JobOver, TaskError

SERVER_TIMEOUT_S: Final = 1800.0
_MAX_ANSWER_BYTES: Final = 256 << 20
_LOOK_S: Final = 0.5
_BUSY: Final = 429
_FAILED: Final = 500
_OK: Final = 200


def server_runner(server: ImageServer, settings: Settings) -> Callable[..., Any]:
    """Return the runner of a server. Many threads call it."""
    headers = {"authorization": f"Bearer {settings.engine_api_key}"} if settings.engine_api_key else {}

    def run(batch: Sequence[PictureOrder], contexts: Sequence[Context]) -> list[PictureOutput]:
        return [_made(server, headers, *one) for one in zip(batch, contexts, strict=True)]

    return run


def _made(server: ImageServer, headers: dict[str, str], order: PictureOrder, context: Context) -> PictureOutput:
    source = source_of(order, context)
    context.progress(0, order.count)
    answer = _answer(server, headers, order, source, context)
    size = order.size
    for number, content in enumerate(answer):
        try:
            picture = read_picture(content, f"picture {number} of the server")
        except HeadraceError as error:
            raise TaskError(f"the server of images sent no picture: {error.message}") from error
        size = f"{picture.width}x{picture.height}"
        name, kind = f"picture-{number}.{order.format}", MEDIA_TYPES[order.format]
        context.file(
            name, written(picture, order.format, order.quality), kind, width=picture.width, height=picture.height
        )
    seeds = tuple((order.seed or 0) + number for number in range(len(answer)))
    return PictureOutput(size=size or "", steps=order.steps or 0, seeds=seeds)


def _answer(
    server: ImageServer, headers: dict[str, str], order: PictureOrder, source: Source, context: Context
) -> list[bytes]:
    """Return the pictures of the server's answer. Raises UpstreamLost, TaskError; JobOver soon after a cancel."""
    found: list[bytes | Exception] = []
    with httpx2.Client(timeout=SERVER_TIMEOUT_S, headers=headers) as client:

        def ask() -> None:
            try:
                found.append(_sent(client, server, order, source))
            except Exception as error:  # noqa: BLE001 - raised in the job's thread
                found.append(error)

        asking = threading.Thread(target=ask, name="image-server", daemon=True)
        asking.start()
        while asking.is_alive():
            asking.join(_LOOK_S)
            if context.cancelled:
                raise JobOver("the job has ended")  # closing the client ends the request at the server
    (body,) = found
    if isinstance(body, httpx2.HTTPError):
        raise UpstreamLost(f"the server of images gave no answer: {type(body).__name__}")
    if isinstance(body, Exception):
        raise body
    try:
        return [b64decode(one["b64_json"], validate=True) for one in orjson.loads(body)["data"]][: order.count]
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise TaskError("the answer of the server of images has no `b64_json` for each picture") from error


def _sent(client: httpx2.Client, server: ImageServer, order: PictureOrder, source: Source) -> bytes:
    fields: dict[str, Any] = {"model": server.model, "prompt": order.prompt, "n": order.count, "size": order.size}
    fields |= {"response_format": "b64_json", "num_inference_steps": order.steps, "seed": order.seed}
    fields |= {"guidance_scale": order.guidance, "negative_prompt": order.negative_prompt}
    fields |= {"strength": getattr(order, "strength", None)}
    given = {name: value for name, value in fields.items() if value is not None}
    if source.picture is None:
        request = client.build_request("POST", f"{server.url}/v1/images/generations", json=given)
    else:
        sent = {"image": ("picture.png", written(source.picture, "png"), "image/png")}
        if source.mask is not None:
            # OpenAI's masks are painted anew where they are transparent.
            mask = source.picture.copy()
            mask.putalpha(source.mask.point(lambda value: 255 - value))
            sent["mask"] = ("mask.png", written(mask, "png"), "image/png")
        text = {name: str(value) for name, value in given.items()}
        request = client.build_request("POST", f"{server.url}/v1/images/edits", data=text, files=sent)
    answer = client.send(request, stream=True)
    try:
        if answer.status_code == _BUSY or answer.status_code >= _FAILED:
            raise UpstreamBusy(f"the server of images answered {answer.status_code}")
        if answer.status_code != _OK:
            raise TaskError(f"the server of images refused the request with {answer.status_code}")
        body = bytearray()
        for block in answer.iter_bytes():
            body += block
            if len(body) > _MAX_ANSWER_BYTES:
                raise TaskError(f"the answer of the server of images is over {_MAX_ANSWER_BYTES} bytes")
        return bytes(body)
    finally:
        answer.close()
