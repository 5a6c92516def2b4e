"""How requests for videos are checked and counted, and which folders make videos."""

import secrets

from headrace.features.diffusion.model_folder import check_folder
from headrace.features.diffusion.pictures import MAX_PIXELS, MAX_SEED, size_of
from headrace.features.diffusion.video.task import (
    MAX_VIDEO_PIXELS,
    VIDEO_GENERATE,
    VideoOrder,
)
from headrace.features.diffusion.video.video_folder import (
    SMALL_FILES,
    VideoSettings,
    makes_videos,
    most_tokens,
    settings_for,
)
from headrace.prompts.tasks.own_task import num_tokens_of
from headrace.prompts.tasks.task_inputs import InputModel, Prepared, TaskInputs
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import JobOrder, PinnedPolicy


def filled(order: VideoOrder, model: InputModel) -> VideoOrder:
    """Return the order with all that it leaves out. Raises InvalidRequest for what the model cannot make."""
    facts: VideoSettings = model.settings
    defaults = facts.defaults
    width, height = size_of(order.size) or (facts.width, facts.height)
    if width % facts.multiple or height % facts.multiple:
        near = "x".join(str(max(1, round(one / facts.multiple)) * facts.multiple) for one in (width, height))
        raise InvalidRequest(
            f"the size {width}x{height} is not possible: the model needs multiples of {facts.multiple}, such as {near}",
            param="input.size",
        )
    if width * height > MAX_PIXELS:
        raise InvalidRequest(
            f"a frame of {width}x{height} has {width * height} pixels, and {MAX_PIXELS} are made at most",
            param="input.size",
        )
    fps = order.fps or facts.fps
    frames = _frames(order, facts, fps)
    if width * height * frames > MAX_VIDEO_PIXELS:
        most = facts.nearest(MAX_VIDEO_PIXELS // (width * height) - facts.stride / 2)
        raise InvalidRequest(
            f"{frames} frames of {width}x{height} have {width * height * frames} pixels, and {MAX_VIDEO_PIXELS} are "
            f"made at most: at this size {most} frames",
            param="input.size",
        )
    return order.model_copy(
        update={
            "size": f"{width}x{height}",
            "frames": frames,
            "fps": fps,
            "seconds": None,
            "steps": order.steps or defaults.steps,
            "guidance": defaults.guidance if order.guidance is None else order.guidance,
            "negative_prompt": order.negative_prompt or defaults.negative_prompt,
            "seed": secrets.randbelow(MAX_SEED) if order.seed is None else order.seed,
        }
    )


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


def _prepare(request: JobOrder, model: InputModel, policy: PinnedPolicy | None) -> Prepared:
    order = filled(request.input, model)  # type: ignore[arg-type]  # the request of this task
    return Prepared(VIDEO_GENERATE.payload(input=order, policy=policy), num_tokens_of(VIDEO_GENERATE, order))


def _check(request: JobOrder, model: InputModel) -> JobOrder:
    filled(request.input, model)  # type: ignore[arg-type]  # the request of this task
    return request


PART = TaskInputs(
    spec=VIDEO_GENERATE,
    prepare=_prepare,
    cut_to_length=_check,
    is_quick=lambda _request, _model: True,
    read_settings=settings_for,
    is_folder=makes_videos,
    folder_files=SMALL_FILES,
    check_folder=check_folder,
    folder_window=most_tokens,
    has_any_files=True,
    has_tokenizer=lambda _config: False,
)
