"""``make clients``: programs that use third-party clients, against a live stack on SmolLM2 and MiniLM.

Each client has its own environment under ``build/clients``, created once; a program changes only the base URL. Prints
the features that work with each client, the errors of the others, and exits 1 if there is an error.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.venvs import CannotInstall, Say
from store.settings import child_environment
from tests.clients.cutting import cutting
from tests.clients.environments import node_modules, python_with
from tests.e2e.running import running_smollm2
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


def _node(folder: Path) -> list[list[str]]:
    # Node resolves packages from the module's own folder.
    return [["node", shutil.copy(_PROGRAMS / "openai_node.mjs", folder)]]


def _node_quick_start(folder: Path, api_url: str, api_key: str) -> list[str]:
    program = folder / "quick-start.mjs"
    program.write_text(here(block("js", 'from "openai"'), api_url, api_key))
    return ["node", str(program)]


def _langchain_quick_start(interpreter: Path, api_url: str, api_key: str) -> list[str]:
    return [str(interpreter), "-c", here(block("python", "langchain_openai"), api_url, api_key)]


def _llm_quick_start(interpreter: Path, api_url: str, api_key: str) -> list[str]:
    lines = here(block("sh", "llm keys set"), api_url, api_key).splitlines()
    commands = [line for line in lines if not line.startswith("pip install")]
    home = tempfile.mkdtemp(prefix="hr-llm-")
    setup = [f"export LLM_USER_PATH={home} PATH={interpreter.parent}:$PATH"]
    return ["sh", "-ec", "\n".join([*setup, *commands])]


CLIENTS = (
    Client("openai (Python)", lambda _: Path(sys.executable), _python("openai_python.py", "openai_python_jobs.py")),
    Client("anthropic (Python)", lambda _: Path(sys.executable), _python("anthropic_python.py")),
    Client("openai (Node)", node_modules, _node, _node_quick_start),
    Client(
        "LangChain", lambda say: python_with("langchain", say), _python("langchain_chat.py"), _langchain_quick_start
    ),
    Client("LiteLLM", lambda say: python_with("litellm", say), _python("litellm_client.py")),
    Client("instructor", lambda say: python_with("instructor", say), _python("instructor_client.py")),
    Client("llm", lambda say: python_with("llm", say), _python("llm_tool.py"), _llm_quick_start),
)


def main() -> None:
    names = [client.name for client in CLIENTS]
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CLIENT", help=", ".join(names))
    parser.add_argument("--feature", nargs="+", default=[], help="only features with one of these words")
    args = parser.parse_args()
    found: list[Found] = []
    wanted = [client for client in CLIENTS if client.name in args.only]
    began = time.monotonic()
    environments = dict(_environments(wanted, found))
    console.log(f"{len(environments)} environments are there after {time.monotonic() - began:.0f} s")
    with ExitStack() as cleanup:
        running = cleanup.enter_context(running_smollm2({}, console.log, beside=["minilm"]))
        api_url, api_key = running.stack.api_url, running.stack.api_key
        env = child_environment(
            {
                "OPENAI_BASE_URL": f"{api_url}/v1",
                "OPENAI_API_KEY": api_key,
                "ANTHROPIC_BASE_URL": api_url,
                "ANTHROPIC_API_KEY": api_key,
                "CUTTING_BASE_URL": f"{cleanup.enter_context(cutting(api_url))}/v1",
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
                found += _shown(_quick_start(client, client.quick_start(environment, api_url, api_key), env))
    _draw(wanted, found)
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
