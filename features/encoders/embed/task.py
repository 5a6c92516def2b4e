"""The task ``embed``: texts in, one vector for each out."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from headrace.features.encoders.encoder_fields import Cuts, Truncate
from headrace.store.payloads.conversation import Failures, Images, urls_of
from headrace.store.payloads.job_payload import JobOrder, TokenId
from headrace.store.payloads.strict_model import Strict, Text
from headrace.store.tasks.task_spec import TaskSpec

MAX_EMBED_INPUTS = 2048
MAX_EMBED_TOKENS = 131_072
TokenIds = Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_EMBED_TOKENS)]
Dimensions = Annotated[
    int, Field(ge=1, le=65_536, description="of each vector; fewer than the model's only where it was trained for that")
]


PromptName = Annotated[
    str | None,
    Field(min_length=1, max_length=200, description="a prompt of the model, by its name; it is put before each text"),
]


class EmbedInput(Strict):
    """The inputs to embed: texts, token ids of the model's own vocabulary, or images; exactly one of the three.

    Token ids are taken as they are: the caller gives the special tokens that the model expects around a text.
    """

    texts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_EMBED_INPUTS)] | None = None
    token_ids: Annotated[tuple[TokenIds, ...], Field(min_length=1, max_length=MAX_EMBED_INPUTS)] | None = None
    images: Images | None = Field(None, description="images, for a model that embeds them")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if [self.texts, self.token_ids, self.images].count(None) != 2:
            raise ValueError("give exactly one of `texts`, `token_ids` and `images`")
        return self


class EmbedPayload(Strict):
    """The part of an embed request that the worker needs, as stored in the job row."""

    input: EmbedInput
    dimensions: Dimensions | None = None
    truncate: Truncate = False
    prompt_name: PromptName = None


class EmbedRequest(JobOrder):
    """The body of ``POST /v1/jobs`` for vectors."""

    task: Literal["embed"]
    input: EmbedInput
    dimensions: Dimensions | None = None
    truncate: Truncate = False
    prompt_name: PromptName = None

    @model_validator(mode="after")
    def _has_texts(self) -> Self:
        if self.prompt_name is not None and self.input.texts is None:
            raise ValueError("`prompt_name` goes with texts: token ids and images are used as they are")
        return self

    def called_urls(self) -> tuple[tuple[str, str], ...]:
        """Return the URLs of images, by their fields."""
        return urls_of(self.input.images)


class EmbedOutput(Strict):
    """The output of an embed job: for each input a vector of ``dimensions`` numbers, float32, little-endian, base64.

    An image that could not be read has an empty text, and is in ``failed``.
    """

    embeddings: tuple[str, ...]
    dimensions: int
    truncated: Cuts = None
    failed: Failures = None


EMBED = TaskSpec(
    name="embed",
    request=EmbedRequest,
    output=EmbedOutput,
    runner="encoder",
    fake_runner="fake-encoder",
    urls=("/v1/embeddings",),
    purpose="makes vectors and no text: use /v1/embeddings, or the task embed",
    bulky_outputs=("embeddings",),
    has_many_texts=True,
    url_example={"input": ["a mill on the river", "bread"]},
    examples={
        "vectors": {
            "summary": "Vectors for texts",
            "value": {"task": "embed", "model": "minilm", "input": {"texts": ["a mill on the river", "bread"]}},
        },
    },
)

PART = EMBED
