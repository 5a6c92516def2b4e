"""``file_search`` of the Responses API: the tool as the ``retrieval`` of a job, and the search in the output. No I/O.

The model does not decide whether to search: the stores are searched once, before it answers, with the user's last
message. So the search is the first item of the output, and its events come before those of the answer:

    item added │ in_progress │ searching │ completed │ item done │ … the answer, with annotations
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from headrace.producer_api.server.errors import from_validation
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.retrieval import Retrieval

if TYPE_CHECKING:
    from headrace.features.responses.response_tools import FunctionTool

FILE_SEARCH = "file_search"
RESULTS = "file_search_call.results"
"""The value of ``include`` that shows what was found."""

_FIELDS = ("vector_store_ids", "max_num_results", "filters", "ranking_options")

Item = dict[str, Any]


def place_of(tools: Sequence["FunctionTool"] | None) -> str | None:
    """Return where the request has its ``file_search``, None if it has none."""
    return next((f"tools[{index}]" for index, tool in enumerate(tools or ()) if tool.type == FILE_SEARCH), None)


def retrieval_of(tools: Sequence["FunctionTool"] | None, choice: str | Mapping[str, Any] | None) -> Retrieval | None:
    """Return what is searched before the answer; None without ``file_search``, or with the choice ``none``.

    Raises InvalidRequest that names the field.
    """
    wanted = [(index, tool) for index, tool in enumerate(tools or ()) if tool.type == FILE_SEARCH]
    if not wanted or choice == "none":
        return None
    if len(wanted) > 1:
        message = "one `file_search` is supported: name all stores in it"
        raise InvalidRequest(message, code="unsupported_parameter", param=f"tools[{wanted[1][0]}]")
    ((index, tool),) = wanted
    others = [number for number, one in enumerate(tools or ()) if one.type in ("function", "namespace")]
    if others:
        message = "`file_search` and functions do not go together in one response: send them in two"
        raise InvalidRequest(message, code="unsupported_parameter", param=f"tools[{others[0]}]")
    given = tool.model_dump(mode="json", exclude={"type"}, exclude_none=True, exclude_unset=True)
    try:
        return Retrieval.model_validate(given)
    except ValidationError as error:
        complaint = from_validation(error.errors(include_input=False))
        complaint.param = f"tools[{index}].{complaint.param}" if complaint.param else f"tools[{index}]"
        raise complaint from None


def shown_search(tool: "FunctionTool") -> Item:
    """Return the tool as the response shows it again."""
    return tool.model_dump(mode="json", include={"type", *_FIELDS}, exclude_none=True)


def searched_step(job: Job) -> str | None:
    """Return the name of the step for which the job of a response searches, None if it does not search."""
    steps = (job.payload or {}).get("steps") or ()
    return next((str(step["name"]) for step in steps if step.get("retrieval")), None)


def question_of(job: Job) -> str | None:
    """Return the text that the stores of a response are searched with, None if it does not search."""
    name = searched_step(job)
    if name is None:
        return None
    (step,) = (one for one in job.payload["steps"] if one["name"] == name)
    said = [turn["content"] for turn in step["input"]["messages"] if turn["role"] == "user"]
    return str(said[-1])


def shown_results(passages: Sequence[Mapping[str, Any]]) -> list[Item]:
    """Return the passages that were found as ``results``, with their place in the file as an extension."""
    return [
        {
            "file_id": one["file_id"],
            "filename": one["filename"],
            "score": one["score"],
            "text": one["text"],
            "attributes": None,
            "place": one["place"],
        }
        for one in passages
    ]
