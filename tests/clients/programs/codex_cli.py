"""Codex CLI in its default configuration, with a provider of its own: ``codex exec`` answers and ends.

Only its instructions are short: with the default ones its first request has more tokens than SmolLM2's window.
"""

import asyncio
import os
import subprocess
import tempfile
from pathlib import Path

from reporting import BASE_URL, MODEL, feature, main

CONFIG = """
model = "{model}"
model_provider = "headrace"
model_context_window = 8192
model_instructions_file = "{instructions}"

[model_providers.headrace]
name = "Headrace"
base_url = "{base_url}"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
CODEX = os.environ["CODEX"]


def execute(model: str, question: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as home:
        instructions = Path(home, "instructions.md")
        instructions.write_text("Answer in one short sentence.")
        config = CONFIG.format(model=model, base_url=BASE_URL, instructions=instructions)
        Path(home, "config.toml").write_text(config)
        options = ["--skip-git-repo-check", "--sandbox", "read-only", "--json"]
        env = {**os.environ, "CODEX_HOME": home}
        command = [CODEX, "exec", *options, question]
        return subprocess.run(
            command,
            env=env,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


@feature("agent")
def answers() -> None:
    done = execute(MODEL, "What is the capital of France?")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    assert "turn.completed" in done.stdout, done.stdout[-1500:]


@feature("error: unknown model")
def unknown_model() -> None:
    done = execute("nobody", "hi")
    assert done.returncode, done.stdout[-1500:]
    assert "nobody" in done.stdout + done.stderr, done.stdout[-1500:]


main(asyncio.run)
