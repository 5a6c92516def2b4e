"""What every maker of pictures does for an order: picture after picture, with progress, states and files.

Each picture is computed alone, by a generator of its own seed. So it has the same bytes whatever else is asked for, and
after a lost worker.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from headrace.features.diffusion.pictures import MEDIA_TYPES, EditOrder, PictureOrder, PictureOutput, size_of
from headrace.features.diffusion.steps import OnStep, Step
from headrace.prompts.vision.image_sources import content_of
from headrace.prompts.vision.pictures import Picture, read_picture, written
from headrace.store.errors import HeadraceError
from headrace.store.payloads.conversation import Image
from headrace.tasks import Context, TaskError

_PREVIEW_EDGE: Final = 512
_HEAD_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Source:
    """What a picture is made from, beside the order: the picture to change, and the mask (white is painted anew)."""

    picture: Picture | None = None
    mask: Picture | None = None


class Painter(Protocol):
    """Makes one picture."""

    def paint(self, order: PictureOrder, source: Source, seed: int, on_step: OnStep, resumed: bytes | None) -> Picture:
        """Return the picture of a seed. ``resumed``: a state of the same picture."""
        ...


@dataclass(slots=True)
class _Saved:
    """The pictures of an attempt that are done, as files, and the state of the next one."""

    files: list[bytes] = field(default_factory=list)
    state: bytes = b""

    def to_bytes(self, state: bytes) -> bytes:
        head = json.dumps([*map(len, self.files), len(state)]).encode()
        return b"".join([len(head).to_bytes(_HEAD_BYTES, "big"), head, *self.files, state])

    @classmethod
    def of(cls, saved: bytes | None) -> "_Saved":
        if saved is None:
            return cls()
        at = _HEAD_BYTES + int.from_bytes(saved[:_HEAD_BYTES], "big")
        parts = []
        for length in json.loads(saved[_HEAD_BYTES:at]):
            parts.append(saved[at : at + length])
            at += length
        return cls(parts[:-1], parts[-1])


def painting(painter: Painter) -> Callable[[Sequence[PictureOrder], Sequence[Context]], list[PictureOutput]]:
    """Return the runner of a painter."""

    def run(batch: Sequence[PictureOrder], contexts: Sequence[Context]) -> list[PictureOutput]:
        return [_made(painter, order, context) for order, context in zip(batch, contexts, strict=True)]

    return run


def _made(painter: Painter, order: PictureOrder, context: Context) -> PictureOutput:
    source = source_of(order, context)
    saved = _Saved.of(context.resumed)
    seeds = [(order.seed or 0) + number for number in range(order.count)]
    steps = order.steps or 0
    size = size_of(order.size)
    for number in range(len(saved.files), order.count):

        def told(step: Step, number: int = number) -> None:
            nonlocal steps
            steps = step.total
            _tell(order, context, number, step)
            if step.state is not None:
                state = step.state
                context.checkpoint(lambda: saved.to_bytes(state()))

        picture = painter.paint(order, source, seeds[number], told, saved.state or None)
        saved.state, size = b"", picture.size
        saved.files.append(written(picture, order.format, order.quality))
    width, height = size or (0, 0)
    for number, content in enumerate(saved.files):
        name = f"picture-{number}.{order.format}"
        context.file(name, content, MEDIA_TYPES[order.format], width=width, height=height)
    return PictureOutput(size=f"{width}x{height}", steps=steps, seeds=tuple(seeds))


def _tell(order: PictureOrder, context: Context, number: int, step: Step) -> None:
    """Tell of a step, with a preview after parts of equal length. The last step has none: the picture follows."""
    parts = order.previews + 1
    is_shown = step.done < step.total and step.done * parts // step.total > (step.done - 1) * parts // step.total
    preview = step.preview() if is_shown else None
    total = order.count * step.total
    message = f"picture {number + 1}" if order.count > 1 else ""
    context.progress(number * step.total + step.done, total, message, preview=_data_url(preview))


def _data_url(picture: Picture | None) -> str | None:
    if picture is None:
        return None
    small = picture.copy()
    small.thumbnail((_PREVIEW_EDGE, _PREVIEW_EDGE))
    return f"data:image/jpeg;base64,{b64encode(written(small, 'jpeg', 80)).decode()}"


def source_of(order: PictureOrder, context: Context) -> Source:
    """Return the decoded pictures of an order, of its size. Raises TaskError for one that cannot be decoded."""
    if not isinstance(order, EditOrder):
        return Source()
    picture = _read(order.images[0], "input.images[0]", context).convert("RGB")
    size = size_of(order.size) or picture.size
    if order.mask is None:
        return Source(picture.resize(size))
    mask = _read(order.mask, "input.mask", context)
    if mask.size != picture.size:
        raise TaskError("the mask and the picture have different sizes when they stand upright")
    alpha = mask.getchannel("A")
    has_holes = alpha.getextrema()[0] < 255
    painted: Any = alpha.point(lambda value: 255 - value) if has_holes else mask.convert("L")
    return Source(picture.resize(size), painted.resize(size))


def _read(image: Image, param: str, context: Context) -> Picture:
    content = content_of(image, param)
    if content is None:
        content = context.read(image.file_id or "")
    try:
        return read_picture(content, param, "RGBA")
    except HeadraceError as error:
        raise TaskError(error.message) from error
