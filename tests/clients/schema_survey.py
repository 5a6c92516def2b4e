"""``make client-schemas``: real packages' own pydantic and zod schemas, each compiled or refused in our words.

The schemas are collected in the clients' environments (``build/clients``, made by ``make clients``), without doubles.
Of each package as many are tried as of every other one, as long as it has them. A schema goes through the check that
the API makes when it accepts a job, with SmolLM2's tokenizer. Prints a table; exits 1 if a schema is neither compiled
nor refused, or takes longer than 10 s.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.models.catalog import fetch
from headrace.prompts.grammar import Grammars
from headrace.prompts.tokenizer import eos_token_ids, load_tokenizer
from headrace.store.errors import HeadraceError, InvalidRequest
from tests.clients.environments import FOLDER
from tests.e2e.running import REPOSITORY

PYDANTIC: Mapping[str, Sequence[str]] = {
    "openai-agents": ("openai", "agents", "mcp"),
    "pydantic-ai": ("pydantic_ai",),
    "langgraph": ("langchain", "langchain_core", "langchain_openai", "langgraph", "langsmith"),
    "llamaindex": ("llama_index",),
}
OWN = ("anthropic", "fastapi", "huggingface_hub")
"""Packages of Headrace's own environment."""

ZOD: Mapping[str, Sequence[str]] = {
    "openai-agents-node": ("@openai/agents", "@modelcontextprotocol/core"),
    "ai-sdk": ("ai",),
}
_PROGRAMS = Path(__file__).parent / "programs"
_STANDSTILL_S = 10.0

console = Console(stderr=True, log_path=False)


@dataclass(frozen=True)
class Verdict:
    """What became of a schema; ``reason`` is empty if it was compiled."""

    package: str
    reason: str
    is_refused: bool
    took_s: float


def main() -> None:
    """Collect, try, and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients.schema_survey", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="how many schemas are tried, a third of them zod's")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    pydantic, zod = _without_doubles(_pydantic()), _without_doubles(_zod())
    console.log(f"{sum(map(len, pydantic.values()))} schemas of pydantic, {sum(map(len, zod.values()))} of zod")
    draw = random.Random(args.seed)
    chosen = _in_turn(zod, args.count // 3, draw)
    chosen += _in_turn(pydantic, args.count - len(chosen), draw)
    grammars = _grammars()
    grammars.check("json_schema", "{}")  # the tokenizer is read now
    verdicts = [_try(grammars, found) for found in chosen]
    _draw(verdicts)
    is_bad = any((each.reason and not each.is_refused) or each.took_s > _STANDSTILL_S for each in verdicts)
    sys.exit(1 if is_bad or not verdicts else 0)


def _pydantic() -> Iterator[dict[str, Any]]:
    script = str(_PROGRAMS / "collect_pydantic.py")
    interpreters = {FOLDER.absolute() / name / "bin/python": packages for name, packages in PYDANTIC.items()}
    for interpreter, packages in {**interpreters, Path(sys.executable): OWN}.items():
        if interpreter.exists():
            yield from _lines([str(interpreter), script, *packages], _PROGRAMS)


def _zod() -> Iterator[dict[str, Any]]:
    for name, packages in ZOD.items():
        folder = FOLDER.absolute() / name
        if folder.exists():
            yield from _lines(["node", str(_PROGRAMS / "collect_zod.mjs"), *packages], folder)


def _lines(command: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    console.log(f"collecting {' '.join(command[2:])}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    yield from (json.loads(line) for line in done.stdout.splitlines() if line)


def _without_doubles(found: Iterator[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the schemas by package, each once whatever its title and description are."""
    seen: set[str] = set()
    kept: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in sorted(found, key=lambda each: str(each["name"])):
        bare = {key: value for key, value in one["schema"].items() if key not in ("title", "description", "$schema")}
        text = json.dumps(bare, sort_keys=True)
        if text not in seen:
            seen.add(text)
            kept[one["package"]].append(one)
    return kept


def _in_turn(pools: Mapping[str, list[dict[str, Any]]], count: int, draw: random.Random) -> list[dict[str, Any]]:
    """Return ``count`` schemas, one of each package after the other."""
    left = [draw.sample(pool, len(pool)) for pool in pools.values()]
    chosen: list[dict[str, Any]] = []
    while len(chosen) < count and any(left):
        chosen += [pool.pop() for pool in left if pool][: count - len(chosen)]
    return chosen


def _grammars() -> Grammars:
    folder = fetch("smollm2", REPOSITORY / ".headrace" / "models")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".json"}
    tokenizer = load_tokenizer(files)
    return Grammars(files["tokenizer.json"], vocab_size=tokenizer.vocab_size, eos_token_ids=eos_token_ids(files))


def _try(grammars: Grammars, found: Mapping[str, Any]) -> Verdict:
    began, reason, is_refused = time.monotonic(), "", False
    try:
        grammars.check("json_schema", json.dumps(found["schema"]))
    except HeadraceError as error:
        reason, is_refused = error.message, isinstance(error, InvalidRequest)
        console.log(f"{found['name']}: {reason}", markup=False, highlight=False)
    return Verdict(found["package"], reason, is_refused, time.monotonic() - began)


def _draw(verdicts: Sequence[Verdict]) -> None:
    table = Table("package", "schemas", "compiled", "refused")
    for package in dict.fromkeys(each.package for each in verdicts):
        of_package = [each for each in verdicts if each.package == package]
        refused = sum(bool(each.reason) for each in of_package)
        table.add_row(package, *map(str, (len(of_package), len(of_package) - refused, refused)))
    refused = sum(bool(each.reason) for each in verdicts)
    table.add_row("all", *map(str, (len(verdicts), len(verdicts) - refused, refused)))
    reasons = Table("reason of a refusal", "schemas")
    kinds = Counter(re.sub(r"^[^:]*: ", "", each.reason) for each in verdicts if each.reason)
    for reason, count in kinds.most_common():
        reasons.add_row(reason, str(count))
    out = Console(width=110)
    out.print(table, reasons)
    took = sorted(each.took_s for each in verdicts)
    out.print(f"checking one took {took[len(took) // 2]:.2f} s in the median, {took[-1]:.2f} s at most")


if __name__ == "__main__":
    main()
