"""Pictures by a server with OpenAI's images API, such as vLLM-Omni or SGLang. It is asked once in an attempt."""

import binascii
import threading
from base64 import b64decode
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Final

import orjson

from headrace.features.diffusion.model_folder import ImageServer
from headrace.features.diffusion.picture_work import Source, source_of
from headrace.features.diffusion.pictures import MEDIA_TYPES, PictureOrder, PictureOutput
from headrace.models.external.media_server import MediaServer
from headrace.prompts.vision.pictures import read_picture, written
from headrace.store.errors import HeadraceError
from headrace.store.settings import Settings
from headrace.tasks import Context, JobOver, TaskError

SERVER_TIMEOUT_S: Final = 1800.0
_MAX_ANSWER_BYTES: Final = 256 << 20
_LOOK_S: Final = 0.5


def server_runner(server: ImageServer, settings: Settings) -> Callable[..., Any]:
    """Return the runner of a server. Many threads call it."""

    def run(batch: Sequence[PictureOrder], contexts: Sequence[Context]) -> list[PictureOutput]:
        return [_made(server, settings, *one) for one in zip(batch, contexts, strict=True)]

    return run


def _made(server: ImageServer, settings: Settings, order: PictureOrder, context: Context) -> PictureOutput:
    source = source_of(order, context)
    context.progress(0, order.count)
    answer = _answer(server, settings, order, source, context)
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
    server: ImageServer, settings: Settings, order: PictureOrder, source: Source, context: Context
) -> list[bytes]:
    """Return the pictures of the server's answer. Raises as ``MediaServer.order``; JobOver soon after a cancel."""
    found: list[bytes | Exception] = []
    with closing(MediaServer(server.url, "images", settings, SERVER_TIMEOUT_S)) as asked:

        def ask() -> None:
            try:
                found.append(_sent(asked, server.model, order, source))
            except Exception as error:  # noqa: BLE001 - raised in the job's thread
                found.append(error)

        asking = threading.Thread(target=ask, name="image-server", daemon=True)
        asking.start()
        while asking.is_alive():
            asking.join(_LOOK_S)
            if context.cancelled:
                raise JobOver("the job has ended")  # which ends the request at the server
    (body,) = found
    if isinstance(body, Exception):
        raise body
    try:
        return [b64decode(one["b64_json"], validate=True) for one in orjson.loads(body)["data"]][: order.count]
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise TaskError("the answer of the server of images has no `b64_json` for each picture") from error


def _sent(server: MediaServer, model: str, order: PictureOrder, source: Source) -> bytes:
    fields: dict[str, Any] = {"model": model, "prompt": order.prompt, "n": order.count, "size": order.size}
    fields |= {"response_format": "b64_json", "num_inference_steps": order.steps, "seed": order.seed}
    fields |= {"guidance_scale": order.guidance, "negative_prompt": order.negative_prompt}
    fields |= {"strength": getattr(order, "strength", None)}
    given = {name: value for name, value in fields.items() if value is not None}
    if source.picture is None:
        return server.order("/images/generations", _MAX_ANSWER_BYTES, json=given)
    sent = {"image": ("picture.png", written(source.picture, "png"), "image/png")}
    if source.mask is not None:
        # OpenAI's masks are painted anew where they are transparent.
        mask = source.picture.copy()
        mask.putalpha(source.mask.point(lambda value: 255 - value))
        sent["mask"] = ("mask.png", written(mask, "png"), "image/png")
    text = {name: str(value) for name, value in given.items()}
    return server.order("/images/edits", _MAX_ANSWER_BYTES, data=text, files=sent)
