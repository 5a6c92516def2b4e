"""The ``llm`` command-line tool, with the server named in extra-openai-models.yaml."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from reporting import BASE_URL, CAPITAL, MODEL, TOO_LONG, feature, main

folder = Path(tempfile.mkdtemp(prefix="hr-llm-"))
entries = [
    f'- model_id: {name}\n  model_name: {model}\n  api_base: "{BASE_URL}"\n  api_key_name: {key}\n'
    f"  supports_schema: true\n  supports_tools: true\n"
    for name, model, key in (("mill", MODEL, "mill"), ("nobody", "nobody", "mill"), ("keyless", MODEL, "bad"))
]
(folder / "extra-openai-models.yaml").write_text("".join(entries))
(folder / "keys.json").write_text(json.dumps({"mill": os.environ["OPENAI_API_KEY"], "bad": "hr_nobody_nothing"}))
(folder / "tools.py").write_text('def weather(city: str) -> str:\n    "Weather"\n    return "It rains in " + city\n')


def llm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the tool as a person would."""
    command = [str(Path(sys.executable).with_name("llm")), *arguments]
    env = {**os.environ, "LLM_USER_PATH": str(folder)}
    return subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def said(*arguments: str) -> str:
    """What it prints when it succeeds."""
    done = llm(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


ASK = ("prompt", "-m", "mill", "-o", "temperature", "0", "-o", "max_tokens", "24")


def refuses(words: str, *arguments: str, stdin: str = "") -> None:
    """It fails and prints our message."""
    done = llm(*arguments, stdin=stdin)
    assert done.returncode == 1, (done.returncode, done.stdout)
    assert words in done.stderr, done.stderr


@feature("chat")
def chat() -> None:
    assert "Paris" in said(*ASK, "--no-stream", CAPITAL)


@feature("chat, streamed")
def chat_streamed() -> None:
    assert said(*ASK, CAPITAL) == said(*ASK, "--no-stream", CAPITAL)


@feature("conversation")
def conversation() -> None:
    said(*ASK, CAPITAL)
    assert said(*ASK[:1], "-c", *ASK[3:], "And of Italy?").strip()


@feature("error: bad key")
def bad_key() -> None:
    refuses("API key is not valid", "prompt", "-m", "keyless", CAPITAL)


@feature("error: unknown model")
def unknown_model() -> None:
    refuses("no model 'nobody'", "prompt", "-m", "nobody", CAPITAL)


@feature("error: prompt too long")
def too_long() -> None:
    refuses("maximum context length", "prompt", "-m", "mill", stdin=TOO_LONG)


@feature("structured output")
def structured() -> None:
    properties = {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 30}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    asked = (*ASK[:6], "-o", "max_tokens", "200", "--schema", json.dumps(schema), "Invent a dog")
    assert set(json.loads(said(*asked))) == set(json.loads(said(*asked, "--no-stream"))) == {"name", "age"}


@feature("tools")
def tools() -> None:
    # The model may choose not to call the tool: only the request must work.
    assert said(*ASK, "--functions", str(folder / "tools.py"), "How is the weather in Paris?").strip()


main(asyncio.run)
