"""How requests for videos are checked and counted, and which folders make videos."""

from headrace.features.diffusion.order_inputs import left_out, order_inputs
from headrace.features.diffusion.pictures import size_of
from headrace.features.diffusion.video.task import MAX_VIDEO_PIXELS, VIDEO_GENERATE, VideoOrder
from headrace.features.diffusion.video.video_folder import FAKE, SMALL_FILES, VideoSettings, makes_videos, settings_of
from headrace.prompts.tasks.task_inputs import InputModel
from headrace.store.errors import InvalidRequest


def filled(order: VideoOrder, model: InputModel) -> VideoOrder:
    """Return the order with all that it leaves out. Raises InvalidRequest for what the model cannot make."""
    facts: VideoSettings = model.settings
    width, height = size = size_of(order.size) or (facts.width, facts.height)
    known = left_out(order, facts, size)
    fps = order.fps or facts.fps
    frames = _frames(order, facts, fps)
    if width * height * frames > MAX_VIDEO_PIXELS:
        most = facts.nearest(MAX_VIDEO_PIXELS // (width * height) - facts.stride / 2)
        raise InvalidRequest(
            f"{frames} frames of {width}x{height} have {width * height * frames} pixels, and {MAX_VIDEO_PIXELS} are "
            f"made at most: at this size {most} frames",
            param="input.size",
        )
    return order.model_copy(update={**known, "frames": frames, "fps": fps, "seconds": None})


def _frames(order: VideoOrder, facts: VideoSettings, fps: int) -> int:
    if order.seconds is not None:
        if order.frames is not None:
            raise InvalidRequest("send `frames` or `seconds`, not both", param="input.seconds")
        if order.seconds * fps > facts.most_frames:
            raise InvalidRequest(
                f"{order.seconds:g} s at {fps} frames a second are more than {facts.most_frames} frames: ask for "
                f"{facts.most_frames / fps:g} s at most",
                param="input.seconds",
            )
        return facts.nearest(order.seconds * fps)
    frames = order.frames or facts.frames
    if facts.nearest(frames) != frames:
        rule = f"{facts.stride} x n + 1 frames" if facts.stride > 1 else "any number of frames"
        raise InvalidRequest(
            f"{frames} frames are not possible: the model makes {rule}, at most {facts.most_frames}, such as "
            f"{facts.nearest(frames)}",
            param="input.frames",
        )
    return frames


PART = order_inputs(VIDEO_GENERATE, filled, settings_of, FAKE, is_folder=makes_videos, folder_files=SMALL_FILES)
