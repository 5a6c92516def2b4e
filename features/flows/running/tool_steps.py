"""The steps that an answer with calls of server tools brings: one step for each call, and one that goes on behind them.

    answer ──two calls──▶ answer:1   answer:2 ──▶ answer:3, the answer now ──a call──▶ answer:4 ──▶ answer:5 …

No I/O. The prompt of the new answer is the old one with the calls and their results, which are references to the
outputs of the calls: the worker of that step fills them in, after the policy's rules for inputs. So no worker of a
model waits while a tool runs, and the prefix cache has the beginning of the prompt.

If calls may need an approval, their arguments are checked here, once. A call that cannot be made has its fault in the
output and in its step, so nobody is asked for it, and no later check can let it be made without an approval.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headrace.features.flows.running.call_arguments import fault_of
from headrace.features.flows.store.added import Added, AddedStep, AskedApproval
from headrace.features.flows.store.growth import names_after
from headrace.features.flows.task import CALL_TOOL
from headrace.features.flows.tools.builtin import FILE_SEARCH, MAX_QUERY_CHARS
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.payloads.retrieval import SEARCH_TASK
from headrace.store.payloads.step_payload import (
    FAULT,
    NUMBERED_FROM,
    REFERENCES,
    SEARCH,
    THEN,
    TOOLS,
    TOOLS_WITH_APPROVAL,
    Marks,
)

__all__ = ["TOOLS", "TOOLS_WITH_APPROVAL", "after_answer"]

OVER_LIMIT = "Error: not called, because this job may make no more calls. Answer without it."
_RESULT_TOKENS = 256
"""What the result of a call is expected to add to the prompt."""

_ANSWER_TOKENS = 256


def after_answer(claim: Claim, then: Mapping[str, Any], finish: Finish) -> Finish:
    """Return the end of an answer with its calls as steps, and the step behind them; as it is without calls.

    ``then``: ``calls_left``, ``model`` and ``version`` of what makes the calls, and in ``approval`` the ``names`` of
    functions whose calls wait for an approval, with the seconds in ``within_s``; with ``ends`` the job ends instead,
    and the caller makes another one with the answer. In ``search``: how ``file_search`` embeds and what it searches;
    ``found`` is the number of passages that it may have numbered before.
    """
    calls: Sequence[Mapping[str, Any]] = (finish.output or {}).get("tool_calls") or ()
    if not calls or not then["calls_left"] or claim.step is None:
        return finish
    if "approval" in then:
        calls = _judged(calls, claim.payload["input"].get("tools") or ())
        finish = replace(finish, output={**(finish.output or {}), "tool_calls": calls})
    made, left = calls[: then["calls_left"]], max(0, then["calls_left"] - len(calls))
    if _ends_for_approval(made, then):
        return finish
    *names, name = names_after(claim.step, len(made) + 1)
    steps, then = [], dict(then)
    for called, call in zip(names, made, strict=True):
        query = _query(call["function"], then)
        if query is None:
            steps.append(_call_step(called, call, then, claim.step))
        else:
            steps.append(_search_step(called, query, then, claim.step))
            then["found"] = then.get("found", 0) + then[SEARCH]["retrieval"]["max_num_results"]
    added = Added((*steps, _next_answer(name, names, claim, then, finish, left)), answer=name)
    return replace(finish, added=added)


def _judged(calls: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the calls; one that cannot be made has its fault. A search is left as it is: it waits for nobody."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    judged = []
    for call in calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        fault = None if name == FILE_SEARCH else fault_of(arguments, schemas.get(name, {}))
        judged.append(call if fault is None else {**call, FAULT: fault})
    return judged


def _ends_for_approval(made: Sequence[Mapping[str, Any]], then: Mapping[str, Any]) -> bool:
    asks = then.get("approval") or {}
    return bool(asks.get("ends")) and any(_is_asked(call, asks) for call in made)


def _is_asked(call: Mapping[str, Any], asks: Mapping[str, Any]) -> bool:
    return FAULT not in call and call["function"]["name"] in asks["names"]


def _query(function: Mapping[str, Any], then: Mapping[str, Any]) -> str | None:
    """Return what a call of ``file_search`` searches for; None for another call, and for arguments that do not fit.

    The latter are a call like any other: its result says what is wrong.
    """
    if function["name"] != FILE_SEARCH or SEARCH not in then or not _is_object(function["arguments"]):
        return None
    given = json.loads(function["arguments"])
    query = given.get("query")
    fits = given.keys() == {"query"} and isinstance(query, str) and 1 <= len(query.strip()) <= MAX_QUERY_CHARS
    return query if fits and "\x00" not in query else None


def _search_step(name: str, query: str, then: Mapping[str, Any], after: str) -> AddedStep:
    how = then[SEARCH]
    searched = {SEARCH: how["retrieval"], NUMBERED_FROM: then.get("found", 0) + 1}
    payload = {"input": {"texts": [query]}, **how["fields"], **searched}
    return AddedStep(name, SEARCH_TASK, how["model"], how["version"], payload, 1 + len(query) // 4, 0, (after,))


def _call_step(name: str, call: Mapping[str, Any], then: Mapping[str, Any], after: str) -> AddedStep:
    function = call["function"]
    # A worker that does not know the fault knows the refusal.
    unfit = {"refusal": call[FAULT], "is_fault": True} if FAULT in call else {}
    payload = {"input": {"tool": function["name"], "arguments": function["arguments"], **unfit}}
    asks = then.get("approval") or {"names": ()}
    approval = AskedApproval(function["name"], asks["within_s"]) if _is_asked(call, asks) else None
    return AddedStep(name, CALL_TOOL.name, then["model"], then["version"], payload, 1, 1, (after,), approval)


def _next_answer(
    name: str, called: Sequence[str], claim: Claim, then: Mapping[str, Any], finish: Finish, left: int
) -> AddedStep:
    output, marks = finish.output or {}, Marks(dict(claim.payload.get(REFERENCES) or {}))
    results = [marks.mark(f"{step}.output.text") for step in called]
    asked = claim.payload["input"]
    messages = [*asked["messages"], *_turns(output, results)]
    given = {key: value for key, value in asked.items() if key != "tool_choice"} | {"messages": messages}
    if not left:
        given["tool_choice"] = "none"
    payload = {**claim.payload, "input": given, REFERENCES: marks.paths}
    if left:
        payload[THEN] = {**then, "calls_left": left}
    written = int((finish.usage or {}).get("output_tokens") or 0)
    input_tokens = claim.input_tokens + written + _RESULT_TOKENS * len(called)
    most = int((claim.payload.get("sampling") or {}).get("max_tokens") or _ANSWER_TOKENS)
    return AddedStep(
        name, claim.task, claim.model, claim.model_version, payload, input_tokens, input_tokens + most, tuple(called)
    )


def _turns(output: Mapping[str, Any], results: Sequence[str]) -> list[dict[str, Any]]:
    """Return the assistant's turn with its calls, and the result of each."""
    calls = output["tool_calls"]
    turn: dict[str, Any] = {"role": "assistant", "tool_calls": [_readable(call) for call in calls]}
    if output.get("content"):
        turn["content"] = output["content"]
    told = [*results, *[OVER_LIMIT] * (len(calls) - len(results))]
    return [
        turn,
        *(
            {"role": "tool", "tool_call_id": call["id"], "content": text}
            for call, text in zip(calls, told, strict=True)
        ),
    ]


def _readable(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call as templates can render it: one with broken arguments has none, and its result says so."""
    function = call["function"]
    arguments = function["arguments"] if _is_object(function["arguments"]) else "{}"
    return {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
