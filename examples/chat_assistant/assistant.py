"""A chat assistant with a memory and tools: ``python -m examples.chat_assistant.assistant``.

The conversation is kept by Headrace. The tools run here, so they can do what only this program may do.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from openai import OpenAI

from examples.stack import headrace

INSTRUCTIONS = "You are a helpful assistant of a bakery."
MOST_TURNS_OF_TOOLS = 4
ORDERS = {"A-17": "two rye loaves, ready at 16:00", "B-02": "a birthday cake, being baked"}

Tool = Callable[..., str]


def look_up_order(number: str) -> str:
    """Return what is known of an order."""
    return ORDERS.get(number, "there is no such order")


TOOLS: dict[str, Tool] = {"look_up_order": look_up_order}
DESCRIPTIONS: list[Any] = [
    {
        "type": "function",
        "name": "look_up_order",
        "description": "Look up an order by its number.",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "string", "enum": sorted(ORDERS)}},
            "required": ["number"],
            "additionalProperties": False,
        },
    }
]


class Assistant:
    """One conversation. ``say`` gets pieces of the answer as they come."""

    def __init__(self, client: OpenAI, model: str, say: Callable[[str], object] = sys.stdout.write) -> None:
        self._client = client
        self._model = model
        self._say = say
        self.conversation = client.conversations.create().id

    def ask(self, question: str, *, must_use_tools: bool = False) -> str:
        """Return the answer to a question, after as many calls of tools as the model asks for."""
        news: list[Any] = [{"role": "user", "content": question}]
        for turn in range(MOST_TURNS_OF_TOOLS):
            calls, text = self._turn(news, "required" if must_use_tools and turn == 0 else "auto")
            if not calls:
                return text
            news = [self._result(call) for call in calls]
        return self._turn(news, "none")[1]

    def _turn(self, news: list[Any], tool_choice: Any) -> tuple[list[Any], str]:
        with self._client.responses.stream(
            model=self._model,
            conversation=self.conversation,
            instructions=INSTRUCTIONS,
            input=news,
            tools=DESCRIPTIONS,
            tool_choice=tool_choice,
            max_output_tokens=80,
            temperature=0,
        ) as stream:
            for event in stream:
                if event.type == "response.output_text.delta":
                    self._say(event.delta)
                elif event.type in ("response.completed", "response.incomplete"):
                    # Incomplete is an answer that was cut at max_output_tokens.
                    answer = event.response
                    return [item for item in answer.output if item.type == "function_call"], answer.output_text
        raise RuntimeError("the answer failed; the conversation is as before")

    def _result(self, call: Any) -> dict[str, str]:
        self._say(f"[{call.name} {call.arguments}] ")
        return {"type": "function_call_output", "call_id": call.call_id, "output": run_tool(call.name, call.arguments)}


def run_tool(name: str, arguments: str, tools: Mapping[str, Tool] = TOOLS) -> str:
    """Return the result of a tool, or what is wrong with the call, so that the model can correct it."""
    try:
        return tools[name](**json.loads(arguments))
    except (KeyError, TypeError, ValueError) as error:
        return f"the call failed: {error}"


def main() -> None:
    """Talk with the assistant in this terminal; with --demo ask it three questions."""
    parser = argparse.ArgumentParser(prog="python -m examples.chat_assistant.assistant", description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--demo", action="store_true", help="ask three questions and end")
    options = parser.parse_args()
    with headrace(options.model) as server, OpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
        assistant = Assistant(client, options.model)
        if options.demo:
            for question, must_use_tools in (
                ("My name is Ada.", False),
                ("What is my name?", False),
                ("Where is A-17?", True),
            ):
                sys.stdout.write(f"> {question}\n")
                assistant.ask(question, must_use_tools=must_use_tools)
                sys.stdout.write("\n")
            return
        sys.stdout.write("An empty line ends the conversation.\n")
        while question := input("> "):
            assistant.ask(question)
            sys.stdout.write("\n")


if __name__ == "__main__":
    main()
