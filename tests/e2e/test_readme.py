"""The README's blocks, run as they stand against the stack, with its address and key put in."""

import json
import subprocess
import sys

import pytest

from tests import readme
from tests.e2e.running import Running
from tests.readme import block


def here(text: str, running: Running) -> str:
    """A block with this stack's address and key."""
    return readme.here(text, running.stack.api_url, running.stack.api_key)


def test_the_openai_program_prints_an_answer(running: Running) -> None:
    program = here(block("python", "from openai import OpenAI"), running)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_the_curl_chat_gets_an_answer(running: Running) -> None:
    command = here(block("sh", "v1/chat/completions"), running)
    key = f"export HEADRACE_API_KEY={running.stack.api_key}\n"
    done = subprocess.run(["sh", "-c", key + command], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"], done.stderr


@pytest.mark.parametrize("verb", ["?wait=30", "/events", "/cancel"])
def test_the_curl_commands_work(running: Running, verb: str) -> None:
    commands = here(block("sh", "curl -s localhost:8000/v1/jobs -H"), running)
    submit = commands[: commands.index("# 202")]
    answer = subprocess.run(["sh", "-c", submit], capture_output=True, text=True, timeout=60)
    job = json.loads(answer.stdout)
    assert job["status"] in {"queued", "running"}
    (line,) = [line for line in commands.splitlines() if verb in line]
    key = f"export HEADRACE_API_KEY={running.stack.api_key}\n"
    follow = key + line.replace("job_…", job["id"])
    result = subprocess.run(["sh", "-c", follow], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    expected = {"?wait=30": '"succeeded"', "/events": "event: job.succeeded", "/cancel": job["id"]}
    assert expected[verb] in result.stdout
