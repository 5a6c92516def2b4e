"""The maker of pictures without weights, for load tests and to try the API: stripes in colours of the seed."""

import hashlib
import time
from functools import partial

from headrace.features.diffusion.picture_work import Source
from headrace.features.diffusion.pictures import PictureOrder, size_of
from headrace.features.diffusion.steps import OnStep, Step
from headrace.prompts.vision.pictures import Picture, picture_of


class FakePainter:
    """A ``Painter``. Each step takes ``step_s`` seconds, and its state is its number."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def paint(self, order: PictureOrder, source: Source, seed: int, on_step: OnStep, resumed: bytes | None) -> Picture:
        """See ``Painter``."""
        width, height = size_of(order.size) or (64, 64)
        total = order.steps or 1
        for done in range(int(resumed or 0) + 1, total + 1):
            time.sleep(self._step_s)
            preview = partial(stripes, order, width, height, 0)
            on_step(Step(done, total, str(done).encode, preview=preview))
        return stripes(order, width, height, seed)


def stripes(order: PictureOrder, width: int, height: int, seed: int) -> Picture:
    """Return the picture of a prompt and a seed."""
    colours = hashlib.sha256(f"{seed} {order.prompt}".encode()).digest()
    rows = (colours[(row * 8 // height) * 3 :][:3] * width for row in range(height))
    return picture_of(width, height, b"".join(rows))
