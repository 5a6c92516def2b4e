"""Grammars for tool calls: forced calls, a form of the answer or calls, or free calls of strict functions.

They use the call format of the model (``prompts.tool_calls``). So every text that they allow is parsed as calls, with
arguments that validate against the schema of the function.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.prompts.grammar import Grammars, narrowed
from headrace.prompts.tokenizer import Tokenizer
from headrace.prompts.tool_calls import HERMES_TAGS
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.conversation import FunctionSpec, NamedTool, Tool, ToolChoiceMode
from headrace.store.payloads.sampling_params import MAX_GRAMMAR_CHARS, GrammarKind, GrammarSpec
from headrace.store.tasks.generate import AnswerShape, GenerateInput, GeneratePayload, ToolStyle

_MOST_CALLS = 8
"""The maximum number of calls in an answer that a grammar limits, because a small model would never stop."""

# In the pieces in which llguidance reads JSON, where an answer may begin with the same characters: its lexer follows
# the longest piece that is possible, and would not return from a longer one to those of the answer.
_BEFORE_ARGUMENTS = {
    ToolStyle.HERMES: ('\n{{"name": "{name}", "arguments": ',),
    ToolStyle.LLAMA3: ("{{", '"name"', ": ", '"{name}", "parameters": '),
    ToolStyle.JSON: ("{{", '"name"', ": ", '"{name}", "arguments": '),
}
_AFTER_ARGUMENTS = {ToolStyle.HERMES: "}\n", ToolStyle.LLAMA3: "}", ToolStyle.JSON: "}"}

# As models have seen JSON in training; and one that may write any amount of white space often writes nothing else.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# An answer without white space never begins as a call does: ``{"name": "``.
_NO_SPACING = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
# Beside one of these, more properties may be meant than those that are named.
_OPEN_ENDED = frozenset(
    {
        "additionalProperties",
        "unevaluatedProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "dependentSchemas",
        "dependentRequired",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "$ref",
        "$dynamicRef",
    }
)


def with_tools(payload: GeneratePayload, tokenizer: Tokenizer, grammars: Grammars) -> GeneratePayload:
    """Return the payload of a request with tools for this model: its call format and its grammar.

    Raises InvalidRequest if the model cannot follow the request.
    """
    grammar = grammar_for(payload.input, tokenizer, payload.sampling.grammar)
    if grammar is not None:
        _check(grammar, payload.input.callable_tools, payload.sampling.grammar, grammars)
        for name in ("ignore_eos", "min_tokens"):
            if getattr(payload.sampling, name):
                raise InvalidRequest(
                    f"an answer that is held to tools ends with its calls: leave out `{name}`",
                    param=f"sampling.{name}",
                )
    sampling = payload.sampling.model_copy(update={"grammar": grammar})
    shape = _shape(payload.input, payload.sampling.grammar)
    return payload.model_copy(update={"sampling": sampling, "tool_style": tokenizer.tool_style, "answer_shape": shape})


def _shape(source: GenerateInput, answer: GrammarSpec | None) -> AnswerShape | None:
    if isinstance(source.tool_choice, NamedTool) or source.tool_choice is ToolChoiceMode.REQUIRED:
        return AnswerShape.CALLS
    return None if answer is None else AnswerShape.ANSWER_OR_CALLS


def grammar_for(source: GenerateInput, tokenizer: Tokenizer, answer: GrammarSpec | None) -> GrammarSpec | None:
    """Return the grammar for the output of a request with tools, None if there is none.

    ``answer`` is the grammar of the request. It applies to answers only, so forced calls override it. Raises
    InvalidRequest if ``answer`` and free calls cannot be combined, or the schemas are too long. Forced calls are one
    call, unless the request asks for parallel ones: a small model repeats its call as often as it may.
    """
    tools, choice, style = source.callable_tools, source.tool_choice, tokenizer.tool_style
    writing = _Writing(style, *(_tag(tokenizer, tag) for tag in HERMES_TAGS))
    if isinstance(choice, NamedTool):
        return _spec(_forced(writing, tools, name=choice.function.name, most=1))
    if choice is ToolChoiceMode.REQUIRED:
        return _spec(_forced(writing, tools, most=_most_calls(style, source.parallel_tool_calls is True)))
    if answer is not None:
        most = _most_calls(style, source.parallel_tool_calls is not False)
        return _spec(_answer_or_calls(answer, writing, tools, most=most))
    if style is ToolStyle.HERMES and any(tool.function.strict for tool in tools):
        return _spec(_free_text_with_calls(writing, tools))
    return None


def _most_calls(style: ToolStyle, is_parallel: bool) -> int:
    return _MOST_CALLS if is_parallel and style is not ToolStyle.LLAMA3 else 1


@dataclass(frozen=True, slots=True)
class _Writing:
    """How a model writes calls, as terms of Lark; ``opening`` and ``closing`` are of use where a style has tags."""

    style: ToolStyle
    opening: str
    closing: str

    @property
    def has_tags(self) -> bool:
        return self.style is ToolStyle.HERMES

    @property
    def has_opening_token(self) -> bool:
        return self.opening.startswith("<")


def _tag(tokenizer: Tokenizer, text: str) -> str:
    """Return the term for a tag: a token of its own is no text for llguidance, although it may be for the model."""
    token_id = tokenizer.added_token_id(text)
    return json.dumps(text) if token_id is None else f"<[{token_id}]>"


def _forced(writing: _Writing, tools: Sequence[Tool], *, name: str | None = None, most: int) -> str:
    """Calls and nothing else."""
    schemas = {
        index: _closed(tool.function) for index, tool in enumerate(tools) if name is None or tool.function.name == name
    }
    return f"start: {_row_of_calls(most)}\n{_calls(writing, tools, schemas)}"


def _row_of_calls(most: int) -> str:
    return "call" if most == 1 else f'call ("\\n" call){{0,{most - 1}}}'


def _answer_or_calls(answer: GrammarSpec, writing: _Writing, tools: Sequence[Tool], *, most: int) -> str:
    """Calls, or an answer in the form of the request. Their first characters differ (``prompts.tool_calls``)."""
    if answer.kind is not GrammarKind.JSON_SCHEMA:
        raise InvalidRequest(
            "a regular expression, a choice or a grammar does not go together with tools that may be called or not: "
            "let `tool_choice` be `none` or `required`, or give a JSON schema",
            param="input.tool_choice",
        )
    compact = {**narrowed(json.loads(answer.text)), "x-guidance": _NO_SPACING}
    rules = _calls(writing, tools, _strict_schemas(tools))
    return f"start: answer | {_row_of_calls(most)}\nanswer: %json {json.dumps(compact)}\n{rules}"


def _free_text_with_calls(writing: _Writing, tools: Sequence[Tool]) -> str:
    """Any text, in which the opening tag is followed by a call."""
    if writing.has_opening_token:
        tagged = f"tagged: ANY {writing.opening} call"
    else:
        tagged = f"tagged: tag call\ntag[lazy]: ANY {writing.opening}"
    rules = _calls(replace(writing, opening=""), tools, _strict_schemas(tools))
    return f"start: tagged* ANY\nANY: /(.|\\n)*/\n{tagged}\n{rules}"


def _calls(writing: _Writing, tools: Sequence[Tool], schemas: dict[int, dict[str, Any]]) -> str:
    """Return the rule ``call``: one of the functions with a schema, by its place among the tools."""
    opening, closing = (writing.opening, writing.closing) if writing.has_tags else ("", "")
    after = json.dumps(_AFTER_ARGUMENTS[writing.style])
    rules = [f"call: {' | '.join(f'call_{index}' for index in schemas)}"]
    for index, schema in schemas.items():
        pieces = [piece.format(name=tools[index].function.name) for piece in _BEFORE_ARGUMENTS[writing.style]]
        before = " ".join(map(json.dumps, pieces))
        rules.append(f"call_{index}: {opening} {before} arguments_{index} {after} {closing}")
        rules.append(f"arguments_{index}: %json {json.dumps(narrowed(schema))}")
    return "\n".join(rules) + "\n"


def _strict_schemas(tools: Sequence[Tool]) -> dict[int, dict[str, Any]]:
    """Return the schemas that free calls are held to: any object for a function that is not strict."""
    anything: dict[str, Any] = {"type": "object", "x-guidance": _SPACING}
    return {index: _closed(tool.function) if tool.function.strict else anything for index, tool in enumerate(tools)}


def _closed(function: FunctionSpec) -> dict[str, Any]:
    """Return the schema of a function's arguments as a model is held to it.

    Properties that are not named are left out where that is allowed: a model that may add some adds them for ever.
    """
    schema: dict[str, Any] = {"type": "object", **(function.parameters or {}), "x-guidance": _SPACING}
    named, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(named, dict) or not isinstance(required, list) or not _OPEN_ENDED.isdisjoint(schema):
        return schema
    is_named = all(isinstance(name, str) and name in named for name in required)
    return {**schema, "additionalProperties": False} if is_named else schema


def _spec(lark: str) -> GrammarSpec:
    if len(lark) > MAX_GRAMMAR_CHARS:
        raise InvalidRequest(
            f"the schemas of the tools make a grammar of {len(lark)} characters, at most {MAX_GRAMMAR_CHARS} are "
            "possible: name one tool, or give fewer",
            param="input.tools",
        )
    return GrammarSpec(kind=GrammarKind.LARK, text=lark)


def _check(grammar: GrammarSpec, tools: Sequence[Tool], answer: GrammarSpec | None, grammars: Grammars) -> None:
    """Raise InvalidRequest if the model cannot follow the grammar, with the schema that is to blame if one is."""
    try:
        grammars.check(grammar.kind, grammar.text)
    except InvalidRequest as error:
        for index, tool in enumerate(tools):
            _check_parameters(index, tool.function, grammars)
        if answer is not None:
            grammars.check(answer.kind, answer.text)
        raise InvalidRequest(error.message, param="input.tools") from error


def _check_parameters(index: int, function: FunctionSpec, grammars: Grammars) -> None:
    try:
        grammars.check(GrammarKind.JSON_SCHEMA, json.dumps(_closed(function)))
    except InvalidRequest as error:
        raise InvalidRequest(
            f"calls of {function.name} cannot be held to its parameters: {error.message}",
            code="invalid_json_schema",
            param=f"input.tools[{index}].function.parameters",
        ) from error
