"""Models of pipelines on the API: what requests store, and what answers show. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from headrace.features.flows.pipeline import PIPELINE_EXAMPLE, Pipeline
from headrace.producer_api.http.views import seconds
from headrace.store.payloads.strict_model import Strict
from headrace.store.registry.prompt_templates import NAME_PATTERN, Canary, PromptVersion


def _is_no_id(name: str) -> str:
    if name.startswith(("pipe_", "pmpt_")):
        raise ValueError("a name does not begin with `pipe_` or `pmpt_`, as ids do")
    return name


PipelineName = Annotated[str, StringConstraints(pattern=NAME_PATTERN), AfterValidator(_is_no_id)]


class PipelineBody(Pipeline):
    """The content of a version."""

    model_config = ConfigDict(json_schema_extra={"examples": [PIPELINE_EXAMPLE]})


class NewPipeline(Pipeline):
    """A pipeline and the name by which jobs refer to it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "digest", **PIPELINE_EXAMPLE}]})

    name: PipelineName = Field(description="unique in the organization, among prompts and pipelines")


class PipelineCanary(Strict):
    """A version that gets a part of the jobs of an alias."""

    version: int = Field(strict=True, ge=1, description="number of the version")
    percent: int = Field(strict=True, ge=1, le=99, description="of the users; of the jobs where none is named")


class PipelineAlias(Strict):
    """What an alias is to name."""

    version: int = Field(strict=True, ge=1, description="number of the version")
    canary: PipelineCanary | None = Field(None, description="what gets a part of the jobs; null: nothing")


class AliasCanary(PipelineCanary):
    """A canary, and the alias that it is of."""

    alias: str = Field(description="the alias that the canary is of")


class PipelineObject(BaseModel):
    """One version of a pipeline."""

    id: str
    object: Literal["pipeline"] = "pipeline"
    name: str
    version: int
    digest: str = Field(description="SHA-256 of the content")
    aliases: list[str] = Field(description="the aliases that name this version")
    canaries: list[AliasCanary] = Field(
        default_factory=list, description="of all aliases of the pipeline; only where it is read alone"
    )
    created_at: int
    description: str = ""
    input_schema: dict[str, Any] = Field(default_factory=dict, description="JSON schema of the `input` of its jobs")
    steps: list[dict[str, Any]] = Field(description="the steps of its jobs, as they were sent")


class PipelineList(BaseModel):
    """Pipelines, or versions of one; the next page is ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[PipelineObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class PipelineDeleted(BaseModel):
    """A pipeline that was deleted with all its versions."""

    id: str
    object: Literal["pipeline"] = "pipeline"
    deleted: Literal[True] = True


def document_of(body: Pipeline) -> dict[str, Any]:
    """Return the content of a body as it is stored."""
    given: Mapping[str, Any] = {name: getattr(body, name) for name in Pipeline.model_fields}
    return Pipeline.model_construct(**given).document


def pipeline_object(found: PromptVersion, canaries: Sequence[Canary] = ()) -> PipelineObject:
    """Return the object of a version."""
    pipeline = Pipeline.model_validate(found.template)
    return PipelineObject(
        id=found.id,
        name=found.name,
        version=found.version,
        digest=pipeline.content_digest,
        aliases=list(found.aliases),
        canaries=[AliasCanary(alias=one.alias, version=one.version, percent=one.percent) for one in canaries],
        created_at=seconds(found.created_at),
        description=pipeline.description,
        input_schema=pipeline.input_schema,
        steps=pipeline.document["steps"],
    )


def pipeline_list(found: Sequence[PromptVersion], limit: int) -> PipelineList:
    """Return a page of pipelines; ``found`` has up to ``limit + 1`` of them."""
    data = [pipeline_object(one) for one in found[:limit]]
    ids = [one.id for one in data]
    return PipelineList(
        data=data,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=len(found) > limit,
    )
