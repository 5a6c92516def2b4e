"""The task ``thumbnails``: a picture of the caller in, smaller pictures out, as files of the job's result."""

import io
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, Field

from headrace.tasks import Context, Task, TaskError

MOST_PIXELS = 20_000_000


class Input(BaseModel):
    """A picture, and the widths that are wanted."""

    file_id: str | None = Field(None, description="an uploaded picture; without one a grey square is taken")
    widths: list[int] = Field([64, 256], min_length=1, max_length=10, description="pixels, from 1 to 4096 each")


class Output(BaseModel):
    """The size of the picture. Headrace adds `files`: the thumbnails, in the order of `widths`."""

    width: int = Field(description="pixels of the picture")
    height: int = Field(description="pixels of the picture")


TASK = Task(
    name="thumbnails",
    input=Input,
    output=Output,
    runner="thumbnails_task:load",
    example={"widths": [64]},
    count_tokens=lambda given: len(given.widths),
    with_context=True,
    output_texts=(),
    summary="Make smaller pictures of a picture",
)


def load(_folder: Path | None) -> Callable[[list[Input], list[Context]], list[Output]]:
    """Return the runner: a version of this task has no files."""
    return lambda batch, contexts: [thumbnails(*pair) for pair in zip(batch, contexts, strict=True)]


def thumbnails(one: Input, context: Context) -> Output:
    """Make the files of one input. Raises TaskError for what is no picture, or a width that is not allowed."""
    from PIL import Image  # noqa: PLC0415 - only workers need it

    if any(not 1 <= width <= 4096 for width in one.widths):
        raise TaskError("a width is from 1 to 4096 pixels")
    if one.file_id is None:
        picture = Image.new("RGB", (512, 512), "grey")
    else:
        try:
            # Its header says the size, so a picture that is too large is refused before it is decoded.
            opened = Image.open(io.BytesIO(context.read(one.file_id)), formats=("PNG", "JPEG", "WEBP"))
            if opened.width * opened.height > MOST_PIXELS:
                raise TaskError(f"a picture has at most {MOST_PIXELS} pixels")
            picture = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise TaskError("the file is no PNG, JPEG or WebP picture, or is damaged") from error
    for number, width in enumerate(one.widths):
        context.progress(number, len(one.widths), f"{width} pixels wide")
        small = picture.resize((width, max(1, round(picture.height * width / picture.width))))
        content = io.BytesIO()
        small.save(content, "PNG")
        context.file(f"{width}.png", content.getvalue(), "image/png", width=small.width, height=small.height)
    context.progress(len(one.widths), len(one.widths))
    return Output(width=picture.width, height=picture.height)
