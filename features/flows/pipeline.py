"""A pipeline: steps and the schema of their input, which jobs name instead of bringing steps. No I/O."""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, StringConstraints

from headrace.store.errors import InvalidRequest
from headrace.store.payloads.references import OF_INPUT, references, step_of
from headrace.store.payloads.strict_model import Strict
from headrace.store.tasks.flow import MAX_STEPS, FlowStepBody

PIPELINE_EXAMPLE: Final[dict[str, Any]] = {
    "input_schema": {
        "type": "object",
        "properties": {"text": {"type": "string", "maxLength": 4000}},
        "required": ["text"],
        "additionalProperties": False,
    },
    "steps": [
        {
            "name": "summary",
            "model": "smollm2",
            "input": {"messages": [{"role": "user", "content": {"$from": "input.text"}}]},
            "sampling": {"max_tokens": 64},
        },
        {
            "name": "title",
            "model": "smollm2",
            "needs": ["summary"],
            "input": {"messages": [{"role": "user", "content": {"$from": "summary.output.text"}}]},
        },
    ],
}


class Pipeline(Strict):
    """The content of a version of a pipeline."""

    description: Annotated[str, StringConstraints(max_length=1000)] = ""
    input_schema: dict[str, Any] = Field(
        default_factory=dict, description="JSON schema of the `input` that a job brings; empty: any object"
    )
    steps: Annotated[tuple[FlowStepBody, ...], Field(min_length=1, max_length=MAX_STEPS)] = Field(
        description="as in a job of several steps"
    )

    @property
    def document(self) -> dict[str, Any]:
        """The pipeline as it is stored and shown."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def content_digest(self) -> str:
        """SHA-256 of the document."""
        return hashlib.sha256(orjson.dumps(self.document, option=orjson.OPT_SORT_KEYS)).hexdigest()


def check_inputs(pipeline: Pipeline) -> None:
    """Raise InvalidRequest for a schema that is of no object, and for a step that refers to an undeclared input."""
    kind = pipeline.input_schema.get("type", "object")
    if "object" not in ([kind] if isinstance(kind, str) else kind):
        message = 'the input of a job is a JSON object: its schema has `"type": "object"`'
        raise InvalidRequest(f"`input_schema`: {message}", param="input_schema")
    declared = pipeline.input_schema.get("properties")
    if not isinstance(declared, dict):
        return
    for index, step in enumerate(pipeline.steps):
        for name in _inputs_of(step):
            if name not in declared:
                raise InvalidRequest(
                    f"it refers to `input.{name}`, which `input_schema` does not declare",
                    param=f"steps[{index}].input",
                )


def _inputs_of(step: FlowStepBody) -> Iterator[str]:
    for path in references(step.input):
        if step_of(path) is None:
            yield (path.split(".")[1:] or [OF_INPUT])[0]
