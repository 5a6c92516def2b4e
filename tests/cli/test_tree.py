"""The command tree as a whole: what every verb has, what it costs to look at it, and how it ends."""

import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.groups import Node
from headrace.cli.tree import TREE
from headrace.store.settings import child_environment
from tests.cases import full
from tests.cli.test_main import headrace

ROOT = Path(__file__).parents[2]

# Processes, and verbs that print JSON lines, migration output or a protocol.
WITHOUT_JSON = {"up", "demo", "new-task", "api", "worker", "host", "dispatcher", "mcp", "audit export", "audit head"}


def leaves(nodes: dict[str, Node]) -> Iterator[tuple[str, Any]]:
    for name, node in nodes.items():
        command = node.load(name)
        if node.parts:
            yield from ((f"{name} {part}", leaf) for part, leaf in leaves(dict(node.parts)))
        elif hasattr(command, "commands"):
            yield from ((f"{name} {part}", leaf) for part, leaf in command.commands.items())
        else:
            yield name, command


def test_every_verb_that_prints_a_result_prints_json() -> None:
    without = {name for name, leaf in leaves(TREE) if not any("--json" in parameter.opts for parameter in leaf.params)}
    assert {name for name in without if not name.startswith("migrate ")} == WITHOUT_JSON


@pytest.mark.whole
def test_the_documented_tree_is_the_tree() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    documented = {
        f"{noun} {verb}"
        for noun, verbs in re.findall(r"^\| `([a-z-]+)` \| (`[^|]+) \|", page, re.MULTILINE)
        for verb in re.findall(r"`([a-z-]+)`", verbs)
    }
    assert documented == {name for name, _ in leaves(TREE) if " " in name}
    assert all(f"`{name}`" in page for name, _ in leaves(TREE) if " " not in name)


def test_help_names_every_group_and_a_noun_alone_shows_its_list(tmp_path: Path) -> None:
    said = headrace(tmp_path, "--help").stdout
    assert all(re.search(rf"^│ {name} ", said, re.MULTILINE) for name in TREE)
    alone, full = headrace(tmp_path, "keys"), headrace(tmp_path, "keys", "list")
    assert alone.stderr == full.stderr
    assert alone.stderr.startswith("headrace: DATABASE_URL ")


def test_a_command_with_a_similar_name_is_suggested(tmp_path: Path) -> None:
    assert "'submit'?" in headrace(tmp_path, "submitt").stderr


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert re.fullmatch(r"headrace \d+\.\d+\.\d+\n", headrace(tmp_path, "--version").stdout)


@pytest.mark.parametrize(
    ("words", "found"), [("headrace queues pa", "pause"), *full(("headrace dead", "dead-letters"))]
)
def test_words_are_completed(tmp_path: Path, words: str, found: str) -> None:
    number = str(len(words.split()) - 1)
    said = headrace(tmp_path, _HEADRACE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=number).stdout
    assert said.split() == [found]


@pytest.mark.parametrize(
    ("arguments", "module"), [(["jobs"], "typer"), *full((["jobs"], "httpx2"), (["api"], "uvicorn"))]
)
def test_ctrl_c_before_the_imports_are_done_leaves_no_trace(arguments: list[str], module: str, tmp_path: Path) -> None:
    program = f"""
        import signal, sys
        import headrace.cli.main

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == {module!r}:
                    signal.raise_signal(signal.SIGINT)

        sys.meta_path.insert(0, Finder())
        sys.argv = ["headrace", *{arguments!r}]
        headrace.cli.main.main()
    """
    env = child_environment({"HEADRACE_HOME": str(tmp_path)})
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # As the system ends a process that Ctrl-C interrupts, which a shell shows as 130.
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
