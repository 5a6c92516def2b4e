"""The tables of docs/engines.md say what the adapters declare."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from headrace.models.external.upstream import Capabilities
from tests.models.external.engines import ENGINES, Rig
from tests.models.external.test_engine_contract import STATES

PAGE = (Path(__file__).parents[3] / "docs" / "engines.md").read_text()

COLUMNS = {
    "fake": "own engine",
    "vllm": "vLLM",
    "vllm without scale-out": "vLLM without `--enable-scale-out`",
    "vllm behind a router": "vLLM, `--router`",
    "sglang": "SGLang",
    "sglang deterministic": "SGLang, deterministic",
    "openai": "chat completions",
    "openai, goes on": "chat completions, `--continues`",
}
"""The columns of the tables by the names of the contract's engines."""

CAPABILITIES: Mapping[str, Callable[[Capabilities], bool]] = {
    "token ids in and out": lambda can: can.token_ids,
    "logprobs": lambda can: can.logprobs,
    "grammar: JSON schema": lambda can: "json_schema" in can.grammars,
    "grammar: regular expression": lambda can: "regex" in can.grammars,
    "grammar: choice": lambda can: "choice" in can.grammars,
    "grammar: Lark": lambda can: "lark" in can.grammars,
    "seeds": lambda can: can.seeds,
    "priorities": lambda can: can.priorities,
    "salt of the prefix cache": lambda can: can.cache_salt,
    "abort by id": lambda can: can.abort,
    "says what it has to do": lambda can: can.load,
}


def column(table: str, name: str) -> dict[str, str]:
    """Return the cells of a column by the first cells of their rows."""
    text = PAGE.partition(f"<!-- {table} -->\n")[2].partition("<!-- end -->")[0]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row[head.index(name)] for row in rows}


def test_the_tables_show_what_an_engine_declares(rig: Rig, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["rig"]
    if name not in COLUMNS:
        pytest.skip("the engine is not on the page")
    can = rig.can
    assert column("capabilities", COLUMNS[name]) == {
        row: "yes" if holds(can) else "no" for row, holds in CAPABILITIES.items()
    }
    assert column("continuation", COLUMNS[name]) == {
        state: _continuation(can, needs) for state, (needs, _) in STATES.items()
    }


def _continuation(can: Capabilities, needs: str | None) -> str:
    """Return what happens to a request that needs this capability to go on."""
    if needs == "continues_seed" and not can.seeds:
        return "refused"
    goes_on = can.token_ids or can.continues_text
    return "goes on" if goes_on and (needs is None or getattr(can, needs)) else "starts anew"


def test_the_tables_have_a_column_for_each_engine() -> None:
    assert set(COLUMNS) == set(ENGINES) - {"native"}, "which is the own engine too"
