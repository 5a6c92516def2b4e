"""The task ``media`` of ``make media-kills``: pictures and sounds from a seed, step by step, each with saved states."""

import hashlib
import io
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from headrace.tasks import Context, Task


class Order(BaseModel):
    """What is made. ``pause_s``: the time of a step."""

    kind: Literal["picture", "sound"]
    seed: int
    steps: int = 8
    pause_s: float = 0.05


class Made(BaseModel):
    """The step after which another attempt's state was taken over; 0: none."""

    resumed_at: int


TASK = Task(
    name="media",
    input=Order,
    output=Made,
    runner="tests.chaos.media_task:load",
    example={"kind": "picture", "seed": 1},
    is_call=True,
    with_context=True,
    output_texts=(),
)


def load(_folder: Path | None) -> Callable[[list[Order], list[Context]], list[Made]]:
    """Return the runner."""
    return lambda batch, contexts: [_make(*pair) for pair in zip(batch, contexts, strict=True)]


def _make(one: Order, context: Context) -> Made:
    at, latent = 0, hashlib.sha256(f"{one.kind} {one.seed}".encode()).digest()
    if context.resumed is not None:
        at, latent = int.from_bytes(context.resumed[:4]), context.resumed[4:]
    made = Made(resumed_at=at)
    while at < one.steps:
        time.sleep(one.pause_s)
        at, latent = at + 1, hashlib.sha256(latent).digest()
        state = at.to_bytes(4) + latent
        context.checkpoint(state)
        context.progress(at, one.steps, one.kind)
    if one.kind == "picture":
        for side in (32, 8):
            context.file(f"{side}.png", _picture(latent, side), "image/png", width=side, height=side)
    else:
        context.file("sound.wav", _sound(latent), "audio/wav", seconds=0.5)
    return made


def _picture(latent: bytes, side: int) -> bytes:
    from PIL import Image  # noqa: PLC0415 - only workers need it

    content = io.BytesIO()
    Image.frombytes("L", (side, side), latent * (side * side // len(latent))).save(content, "PNG")
    return content.getvalue()


def _sound(latent: bytes) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as writer:
        writer.setparams((1, 1, 8000, 0, "NONE", ""))
        writer.writeframes(latent * 125)
    return content.getvalue()
