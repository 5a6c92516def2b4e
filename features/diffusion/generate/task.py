"""The task ``image_generate``: a prompt in, pictures out, as files of the result."""

from headrace.features.diffusion.pictures import MOST_TOKENS, PictureOrder, PictureOutput, diffusion_spec

PART = IMAGE_GENERATE = diffusion_spec(
    "image_generate",
    PictureOrder,
    PictureOutput,
    {"prompt": "a mill by a river"},
    MOST_TOKENS,
    runner="image-pipeline",
    fake_runner="fake-image-pipeline",
    urls=("/v1/images/generations",),
    purpose="makes pictures: use /v1/images/generations or /v1/images/edits, or the task image_generate or image_edit",
    url_example={"prompt": "a mill by a river"},
)
