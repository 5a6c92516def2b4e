"""Codex CLI: ``codex exec`` answers and ends.

Its configuration is the default one, but for a provider of its own and short instructions: Codex's own instructions
alone fill SmolLM2's context window. With them it reports that the window is full, which is tested too.
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
{more}

[model_providers.headrace]
name = "Headrace"
base_url = "{base_url}"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
CODEX = os.environ["CODEX"]


def execute(model: str, question: str, *, is_brief: bool = True) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as home:
        brief = Path(home, "brief.md")
        brief.write_text("Answer in one sentence.")
        more = f'model_instructions_file = "{brief}"' if is_brief else ""
        Path(home, "config.toml").write_text(CONFIG.format(model=model, base_url=BASE_URL, more=more))
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


@feature("error: prompt too long")
def too_long() -> None:
    done = execute(MODEL, "What is the capital of France?", is_brief=False)
    assert done.returncode, done.stdout[-1500:]
    assert "context window" in done.stdout, done.stdout[-1500:]


@feature("error: unknown model")
def unknown_model() -> None:
    done = execute("nobody", "hi")
    assert done.returncode, done.stdout[-1500:]
    assert "nobody" in done.stdout + done.stderr, done.stdout[-1500:]


main(asyncio.run)
