"""``make clients``: programs that use third-party clients, against a live stack on SmolLM2 and MiniLM.

Each client has its own environment under ``build/clients``, created once; a program changes only the base URL. Prints
the features that work with each client, the errors of the others, and exits 1 if there is an error. A recorder stands
between the programs and the API: a refusal that is not on the reviewed list (``refusals.toml``) is an error too.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.venvs import CannotInstall, Say
from headrace.store.settings import child_environment
from tests.clients.adder import LOCAL, serving_adder
from tests.clients.cutting import cutting
from tests.clients.environments import node_with, python_with
from tests.clients.recorder import REVIEWED, Recorder, Reviewed, read_reviewed, recording, unreviewed
from tests.e2e.running import REPOSITORY, running_smollm2
from tests.readme import block, here

_PROGRAMS = Path(__file__).parent / "programs"
_PROGRAM_S = 300
_TABLE_CHARS = 110

console = Console(stderr=True, log_path=False)
if not console.is_terminal:
    console.width = _TABLE_CHARS


@dataclass(frozen=True)
class Found:
    """Result of a feature with a client; ``error`` is None if it works."""

    client: str
    feature: str
    error: str | None
    took_s: float = 0.0


@dataclass(frozen=True)
class Client:
    """A client: the commands of its programs and of its quick start in the README, built from its environment's
    folder or interpreter."""

    name: str
    prepare: Callable[[Say], Path]
    commands: Callable[[Path], list[list[str]]]
    quick_start: Callable[[Path, str, str], list[str]] | None = None


def _python(*programs: str) -> Callable[[Path], list[list[str]]]:
    return lambda interpreter: [[str(interpreter), str(_PROGRAMS / program)] for program in programs]


def _node(program: str) -> Callable[[Path], list[list[str]]]:
    def commands(folder: Path) -> list[list[str]]:
        # Node resolves packages from the module's own folder.
        shutil.copy(_PROGRAMS / "reporting.mjs", folder)
        return [["node", shutil.copy(_PROGRAMS / program, folder)]]

    return commands


def _codex(folder: Path) -> list[list[str]]:
    binary = f"CODEX={folder / 'node_modules/.bin/codex'}"
    return [["env", binary, sys.executable, str(_PROGRAMS / "codex_cli.py")]]


def _in_python(name: str, program: str) -> Client:
    environment = name.lower().replace(" (python)", "").replace(" ", "-")
    return Client(name, lambda say: python_with(environment, say), _python(program))


def _node_quick_start(folder: Path, api_url: str, api_key: str) -> list[str]:
    program = folder / "quick-start.mjs"
    program.write_text(here(block("js", 'from "openai"'), api_url, api_key))
    return ["node", str(program)]


def _langchain_quick_start(interpreter: Path, api_url: str, api_key: str) -> list[str]:
    return [str(interpreter), "-c", here(block("python", "import ChatOpenAI\n"), api_url, api_key)]


def _llm_quick_start(interpreter: Path, api_url: str, api_key: str) -> list[str]:
    lines = here(block("sh", "llm keys set"), api_url, api_key).splitlines()
    commands = [line for line in lines if not line.startswith("pip install")]
    home = tempfile.mkdtemp(prefix="hr-llm-")
    setup = [f"export LLM_USER_PATH={home} PATH={interpreter.parent}:$PATH"]
    return ["sh", "-ec", "\n".join([*setup, *commands])]


CLIENTS = (
    Client("openai (Python)", lambda _: Path(sys.executable), _python("openai_python.py", "openai_python_jobs.py")),
    _in_python("anthropic (Python)", "anthropic_python.py"),
    Client("openai (Node)", lambda say: node_with("openai-node", say), _node("openai_node.mjs"), _node_quick_start),
    replace(_in_python("LangChain", "langchain_chat.py"), quick_start=_langchain_quick_start),
    _in_python("LiteLLM", "litellm_client.py"),
    _in_python("instructor", "instructor_client.py"),
    replace(_in_python("llm", "llm_tool.py"), quick_start=_llm_quick_start),
    _in_python("OpenAI Agents (Python)", "openai_agents_python.py"),
    Client("OpenAI Agents (Node)", lambda say: node_with("openai-agents-node", say), _node("agents_js.mjs")),
    Client("AI SDK", lambda say: node_with("ai-sdk", say), _node("ai_sdk.mjs")),
    _in_python("pydantic-ai", "pydantic_ai_client.py"),
    _in_python("LangGraph", "langgraph_client.py"),
    _in_python("LlamaIndex", "llama_index_client.py"),
    _in_python("DSPy", "dspy_client.py"),
    _in_python("outlines", "outlines_client.py"),
    _in_python("guidance", "guidance_client.py"),
    _in_python("lm-eval", "lm_eval_client.py"),
    Client("Codex", lambda say: node_with("codex", say), _codex),
)


def main() -> None:
    names = [client.name for client in CLIENTS]
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CLIENT", help=", ".join(names))
    parser.add_argument("--feature", nargs="+", default=[], help="only features with one of these words")
    args = parser.parse_args()
    found: list[Found] = []
    reviewed = read_reviewed()
    wanted = [client for client in CLIENTS if client.name in args.only]
    began = time.monotonic()
    environments = dict(_environments(wanted, found))
    console.log(f"{len(environments)} environments are there after {time.monotonic() - began:.0f} s")
    with ExitStack() as cleanup:
        running = cleanup.enter_context(running_smollm2(LOCAL, console.log, beside=["minilm", "fake-classifier"]))
        api_key = running.stack.api_key
        recorder = cleanup.enter_context(recording(running.stack.api_url))
        env = child_environment(
            {
                "MCP_URL": cleanup.enter_context(serving_adder(running)),
                "OPENAI_BASE_URL": f"{recorder.url}/v1",
                "OPENAI_API_KEY": api_key,
                "ANTHROPIC_BASE_URL": recorder.url,
                "ANTHROPIC_API_KEY": api_key,
                "CUTTING_BASE_URL": f"{cleanup.enter_context(cutting(running.stack.api_url))}/v1",
                "TOKENIZER_FOLDER": str(REPOSITORY / ".headrace" / "models" / "smollm2"),
            }
        )
        console.log(f"the stack is up after {time.monotonic() - began:.0f} s")
        for client in wanted:
            if (environment := environments.get(client.name)) is None:
                continue
            console.log(client.name)
            for command in client.commands(environment):
                found += _shown(_play(client, [*command, *args.feature], env))
            if client.quick_start is not None and not args.feature:
                found += _shown(_quick_start(client, client.quick_start(environment, recorder.url, api_key), env))
            found += _shown(_refused(client, recorder, reviewed))
    _draw(wanted, found)
    console.log(f"{recorder.num_exchanges} exchanges, {recorder.num_failures} of them with a 5xx")
    num_failed = sum(each.error is not None for each in found)
    print(f"{len(found) - num_failed} passed, {num_failed} failed in {time.monotonic() - began:.0f} s")
    sys.exit(1 if num_failed or not found else 0)


def _environments(wanted: list[Client], found: list[Found]) -> Iterator[tuple[str, Path]]:
    for client in wanted:
        try:
            yield client.name, client.prepare(lambda line, name=client.name: console.log(f"{name}: {line}"))
        except CannotInstall as error:
            found += _shown([Found(client.name, "install", str(error))])


def _play(client: Client, command: list[str], env: Mapping[str, str]) -> Iterator[Found]:
    """Run a program; yield its report per feature as it appears, and last an error if it failed."""
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, env=dict(env), stdout=subprocess.PIPE, stderr=errors, text=True) as program:
            assert program.stdout is not None
            for line in program.stdout:
                if line.startswith('{"feature"'):
                    yield Found(client.name, **json.loads(line))
        if program.returncode:
            errors.seek(0)
            yield Found(client.name, "programme", f"exit {program.returncode}: {errors.read()[-2000:]}")


def _refused(client: Client, recorder: Recorder, reviewed: Sequence[Reviewed]) -> Iterator[Found]:
    """Yield an error for each refusal that is not on the list, and for failures of the server."""
    for refusal in unreviewed(client.name, recorder.take(), reviewed):
        yield Found(client.name, "refusals", f"not in {REVIEWED.name}: {refusal}")
    if recorder.num_failures:
        yield Found(client.name, "refusals", f"{recorder.num_failures} answers with a 5xx so far")


def _quick_start(client: Client, command: list[str], env: Mapping[str, str]) -> Iterator[Found]:
    """Run the README's block; it must print something."""
    # The block sets address and key itself, so the environment must not.
    bare = {name: value for name, value in env.items() if not name.startswith("OPENAI_")}
    began = time.monotonic()
    done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=_PROGRAM_S, check=False)
    result = Found(client.name, "README quick start", None, round(time.monotonic() - began, 2))
    if done.returncode or not done.stdout.strip():
        result = replace(result, error=f"exit {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}")
    yield result


def _shown(results: Iterator[Found] | list[Found]) -> Iterator[Found]:
    for result in results:
        mark = "[green]works[/]" if result.error is None else "[red]FAILS[/]"
        console.log(f"  {mark} {result.feature} ({result.took_s:.1f} s)")
        if result.error is not None:
            console.print(result.error, markup=False, highlight=False)
        yield result


def _draw(clients: list[Client], found: list[Found]) -> None:
    table = Table("feature", *(client.name for client in clients), title="Features by client; - is not tried")
    cells = {(each.client, each.feature): "works" if each.error is None else "FAILS" for each in found}
    for feature in dict.fromkeys(each.feature for each in found):
        table.add_row(feature, *(cells.get((client.name, feature), "-") for client in clients))
    console.print(table)


if __name__ == "__main__":
    main()
