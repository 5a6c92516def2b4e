"""Functions that a response calls, asked by the official client."""

import json
from typing import Any, ClassVar

import openai as sdk
import pytest
from openai import OpenAI

from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion, register_version
from tests.features.responses.response_calls import (
    ENDING,
    HELLO,
    ORDER,
    job_of,
    kinds,
    rest,
)
from tests.producer_api.scripted_worker import ScriptedWorker

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


class TestFunctions:
    @pytest.fixture
    def model(self, db: Database) -> ModelVersion:
        """One with room for the description of a tool, a token a byte."""
        return register_version(
            db,
            model="tiny",
            runner="fake",
            source="fake:tiny",
            digest="0" * 64,
            dtype="float32",
            context_window=4096,
            files={},
            actor="tests",
        )

    def test_a_function_is_called_and_answered(self, openai: OpenAI, worker: ScriptedWorker) -> None:
        seen: list[Any] = []
        says = [["Let me see.\n", '{"name": "weath', 'er", "arguments": {"city": "Os', 'lo"}}'], ["Sunny."]]
        with worker.serve(lambda payload: seen.append(payload["input"]) or says[len(seen) - 1]):
            asked = openai.responses.create(**HELLO, tools=[WEATHER], tool_choice="auto")
            _, call = asked.output
            assert call.type == "function_call"
            assert (asked.output_text, call.type, call.name) == ("Let me see.", "function_call", "weather")
            assert json.loads(call.arguments) == {"city": "Oslo"}
            result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
            answered = openai.responses.create(
                model="tiny", input=[result], previous_response_id=asked.id, tools=[WEATHER]
            )
        assert answered.output_text == "Sunny."
        assert seen[0]["tools"][0]["function"]["name"] == "weather"
        turns = seen[1]["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant", "tool"]
        assert turns[1]["tool_calls"][0]["function"]["arguments"] == call.arguments
        assert (turns[2]["tool_call_id"], turns[2]["content"]) == (call.call_id, "sun")
        listed = list(openai.responses.input_items.list(answered.id, order="asc"))
        assert [item.type for item in listed] == ["message", "message", "function_call", "function_call_output"]
        with pytest.raises(sdk.BadRequestError, match="results of"):
            openai.responses.create(model="tiny", input="so?", previous_response_id=asked.id)

    @pytest.mark.parametrize("size", [1, 100])
    def test_its_events_do_not_depend_on_the_pieces(self, openai: OpenAI, worker: ScriptedWorker, size: int) -> None:
        said = 'Well.\n{"name": "weather", "arguments": {"city": "Oslo"}}\n{"name": "weather", "arguments": {}}'
        response = openai.responses.create(**HELLO, tools=[WEATHER], background=True)
        attempt = worker.claim(job_of(response.id))
        worker.say(attempt, *(said[at : at + size] for at in range(0, len(said), size)))
        worker.succeed(attempt)
        events = rest(openai, response.id, None)
        call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done"]
        assert kinds(events)[2:] == [*ORDER[1:], *ENDING[:3], *call, "output_item.done", *call, *ENDING[2:]]
        shown = [(event.type, getattr(event, "delta", None)) for event in events]
        assert shown == self.shown.setdefault("events", shown)
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert done == events[-1].response.output == openai.responses.retrieve(response.id).output
        for number in range(len(events)):
            assert rest(openai, response.id, number) == events[number + 1 :]

    shown: ClassVar[dict[str, Any]] = {}
