"""The task ``image_generate``: a prompt in, pictures out, as files of the result."""

from dataclasses import replace

from headrace.features.diffusion.pictures import MOST_TOKENS, PictureOrder, PictureOutput, tokens_of
from headrace.store.tasks.own_task import spec_of
from headrace.tasks import Task

GENERATE = Task(
    name="image_generate",
    input=PictureOrder,
    output=PictureOutput,
    runner="headrace.features.diffusion.picture_runner:load",
    example={"prompt": "a mill by a river", "steps": 2, "seed": 7},
    count_tokens=tokens_of,
    most_tokens=MOST_TOKENS,
    output_texts=(),
    with_context=True,
    summary="Make pictures from a prompt",
)

PART = IMAGE_GENERATE = replace(
    spec_of(GENERATE),
    runner="image-pipeline",
    fake_runner="fake-image-pipeline",
    cost_is_time=True,
    urls=("/v1/images/generations",),
    purpose="makes pictures: use /v1/images/generations or /v1/images/edits, or the task image_generate or image_edit",
    url_example={"prompt": "a mill by a river"},
)
