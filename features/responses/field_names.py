"""Names that fields of a job have in a request of the Responses API, for errors. No I/O."""

from typing import TYPE_CHECKING

from headrace.features.responses.file_searches import place_of
from headrace.producer_api.http.job_options import JOB_FIELDS
from headrace.store.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.features.responses.response_request import ResponseRequest

_RENAMED = {
    "sampling.max_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "sampling.logprobs": "top_logprobs",
    "input.tool_choice": "tool_choice",
    "input.parallel_tool_calls": "parallel_tool_calls",
    "sampling": "min_tokens",
    "server_tools.max_tool_calls": "max_tool_calls",
}


def as_sent(error: HeadraceError, request: "ResponseRequest") -> HeadraceError:
    """Rename the job field in an error to the request's field."""
    if error.param is not None:
        name = _name_in_request(error.param, request)
        error.message = error.message.replace(f"`{error.param}`", f"`{name}`")
        error.message = error.message.replace("`max_tokens`", "`max_output_tokens`")
        error.message = error.message.replace("`retrieval`", "`file_search`")
        error.param = name
    return error


def _name_in_request(param: str, request: "ResponseRequest") -> str:
    if param.startswith("server_tools.names") and request.server_tools is None:
        param = "tools"
    if param in _RENAMED or param.startswith("sampling.grammar"):
        return _RENAMED.get(param, "text.format")
    if param.partition(".")[0] == "retrieval":
        return (place_of(request.tools) or "tools") + param.removeprefix("retrieval")
    if param.startswith(("input.tools", "input.chat_template_kwargs")):
        return param.removeprefix("input.").replace(".function", "")
    if param.startswith("input") and not param.startswith("input.reasoning"):
        continued = "previous_response_id" if request.conversation is None else "conversation"
        return "input" if request.input is not None else continued
    if param.partition(".")[0] in JOB_FIELDS:
        return f"job.{param}"
    return param.removeprefix("sampling.").removeprefix("input.")
