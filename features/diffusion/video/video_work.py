"""What every maker of videos does for an order: progress and a state at each step, then the file.

A video is computed alone, by a generator of its own seed, and encoded by one thread, so that the same order gives the
same bytes.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from io import BytesIO
from typing import Any, Final, Protocol

import av
import numpy as np
from av.video.reformatter import Colorspace

from headrace.features.diffusion.pictures import size_of
from headrace.features.diffusion.steps import OnStep, Step
from headrace.features.diffusion.video.task import MEDIA_TYPES, VideoFormat, VideoOrder, VideoOutput, output_of
from headrace.tasks import Context

Frame = np.ndarray
"""Height x width x 3 bytes: red, green, blue."""

_CODECS: Final[dict[VideoFormat, tuple[str, dict[str, str]]]] = {
    "mp4": ("libx264", {"crf": "18", "preset": "medium"}),
    "webm": ("libvpx-vp9", {"crf": "28", "b": "0", "deadline": "good", "cpu-used": "4"}),
}
_BT709: Final = 1


class VideoMaker(Protocol):
    """Makes the frames of a video."""

    def make(self, order: VideoOrder, on_step: OnStep, resumed: bytes | None) -> Sequence[Frame]:
        """Return the frames of an order that is filled in. ``resumed``: its state."""
        ...


def making(maker: VideoMaker) -> Callable[[Sequence[VideoOrder], Sequence[Context]], list[VideoOutput]]:
    """Return the runner of a maker."""

    def run(batch: Sequence[VideoOrder], contexts: Sequence[Context]) -> list[VideoOutput]:
        return [_made(maker, order, context) for order, context in zip(batch, contexts, strict=True)]

    return run


def _made(maker: VideoMaker, order: VideoOrder, context: Context) -> VideoOutput:
    steps = order.steps or 0

    def told(step: Step) -> None:
        nonlocal steps
        steps = step.total
        context.progress(step.done, step.total, "" if step.done < step.total else "writing the file")
        if step.state is not None:
            context.checkpoint(step.state)

    frames = maker.make(order, told, context.resumed)
    fps = order.fps or 8
    height, width = frames[0].shape[:2]
    content = encoded(frames, fps, order.format)
    seconds = round(len(frames) / fps, 3)
    name = f"video.{order.format}"
    context.file(name, content, MEDIA_TYPES[order.format], width=width, height=height, seconds=seconds)
    return output_of(order, f"{width}x{height}", len(frames), steps)


def encoded(frames: Sequence[Frame], fps: int, kind: VideoFormat) -> bytes:
    """Return frames of even width and height as a file."""
    codec, options = _CODECS[kind]
    out = BytesIO()
    # No versions and times in the file.
    with av.open(out, "w", format=kind, options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps), options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        # Bytes must not depend on the number of cores.
        stream.codec_context.thread_count = 1
        stream.codec_context.color_primaries = stream.codec_context.color_trc = stream.codec_context.colorspace = _BT709
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())
    return out.getvalue()


class FakeVideoMaker:
    """The maker without weights, for load tests and to try the API: stripes that move."""

    def __init__(self, sleep: Callable[[], None]) -> None:
        self._sleep = sleep

    def make(self, order: VideoOrder, on_step: OnStep, resumed: bytes | None) -> Sequence[Frame]:
        """See ``VideoMaker``. The state is the number of the step."""
        total = order.steps or 1
        for done in range(int(resumed or 0) + 1, total + 1):
            self._sleep()
            on_step(Step(done, total, str(done).encode))
        width, height = size_of(order.size) or (64, 64)
        colours = np.random.default_rng(order.seed).integers(0, 256, (8, 3), dtype=np.uint8)
        rows = colours[np.arange(height) * 8 // height]
        still = np.repeat(rows[:, None], width, axis=1)
        return [np.roll(still, number * 2, axis=0) for number in range(order.frames or 1)]
