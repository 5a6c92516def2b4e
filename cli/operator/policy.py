"""``headrace policy``: apply a policy to sample texts, and evaluate the recognisers on the included texts.

Needs no server.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Group
from rich.table import Table
from rich.text import Text

from headrace.cli.render import JsonOption, show
from headrace.policy.budget import ScanTooLong
from headrace.policy.deny import check_size
from headrace.policy.documents import Action, PolicyDocument, Rule
from headrace.policy.evaluation import STRUCTURED, Score, evaluate, second, shipped
from headrace.policy.outputs import MissingFinder
from headrace.policy.policies import Policy, apply_input, apply_output
from headrace.policy.streaming import Hit
from headrace.policy.text.patterns import BadPattern
from headrace.store.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Try policies out.")

GOAL = 0.95
_STYLES = {
    Action.ALLOW: "green",
    Action.FLAG: "yellow",
    Action.MASK: "magenta",
    Action.REDACT: "cyan",
    Action.BLOCK: "bold white on red",
}
_EVERYTHING = PolicyDocument(rules=(Rule(id="everything", action=Action.REDACT, kinds=STRUCTURED),))


@app.command("test")
def try_out(
    file: Annotated[Path, typer.Argument(help="Sample texts, one a line.")],
    policy: Annotated[
        Path | None, typer.Option("--policy", "-p", help="The policy, as JSON; default: redact everything known.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show each text and the result of a policy, as an input and as an output."""
    rules = Policy(_EVERYTHING if policy is None else _document(policy))
    try:
        check_size(rules.document)
        rules.check()
    except (BadPattern, MissingFinder) as error:
        raise InvalidRequest(f"{policy}: {error}") from None
    lines = [line for line in _read(file).splitlines() if line]
    table = Table("text", "as input", "as output", header_style="bold", show_lines=True, expand=True)
    data = []
    for line in lines:
        try:
            given, said = apply_input(rules, [line]), apply_output(rules, line)
        except ScanTooLong as error:
            raise InvalidRequest(str(error)) from None
        hits = [hit for each in given.hits for hit in each]
        as_input, as_output = "".join(given.texts), said.text
        table.add_row(
            _coloured(line, [*hits, *said.hits]),
            _outcome(as_input, hits, given.blocked_by),
            _outcome(as_output, said.hits, said.blocked_by),
        )
        data.append(
            {
                "text": line,
                "input": _fields(as_input, hits, given.blocked_by),
                "output": _fields(as_output, said.hits, said.blocked_by),
            }
        )
    show(data, table, as_json=as_json)


def _fields(text: str, hits: Sequence[Hit], blocked_by: str | None) -> dict[str, object]:
    told = [
        {"kind": hit.kind, "action": hit.action, "rule": hit.rule_id, "start": hit.start, "end": hit.end}
        for hit in hits
    ]
    return {"text": text, "blocked_by": blocked_by, "hits": told}


def _coloured(line: str, hits: Sequence[Hit]) -> Text:
    text = Text(line)
    for hit in hits:
        text.stylize(_STYLES[hit.action], hit.start, hit.end)
    return text


def _outcome(text: str, hits: Sequence[Hit], blocked_by: str | None) -> Text:
    shown = Text(text)
    shown.highlight_regex(r"<[A-Z][A-Z_]+_\d+>", _STYLES[Action.REDACT])
    if blocked_by is not None:
        shown.append(f"blocked by {blocked_by}", _STYLES[Action.BLOCK])
    told = ", ".join(f"{hit.kind} {hit.action} by {hit.rule_id}" for hit in hits)
    return shown.append(f"\n{told}", "dim") if told else shown


def _document(file: Path) -> PolicyDocument:
    try:
        return PolicyDocument.model_validate_json(_read(file))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"{file}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} cannot be read: {error}") from None


@app.command("evaluate")
def evaluate_recognisers(as_json: JsonOption = False) -> None:
    """Print precision and recall of each recogniser; exit 1 if one is below 0.95 on the held-out texts."""
    first = shipped()
    sets = {
        "tuned": [case for case in first if not case.is_held_out],
        "held out": [case for case in first if case.is_held_out],
        "second set": second(),
    }
    scores = {name: evaluate(cases) for name, cases in sets.items()}
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("recogniser")
    for column in (column for name in sets for column in (f"{name}: number", "precision", "recall")):
        table.add_column(column, justify="right")
    for row in zip(*scores.values(), strict=True):
        table.add_row(row[0].kind, *(figure for score in row for figure in _figures(score)))
    told = ", ".join(f"{len(cases)} {name}" for name, cases in sets.items())
    data = {name: [asdict(score) for score in found] for name, found in scores.items()}
    show(data, Group(table, f"texts: {told}; spans must be right to the character"), as_json=as_json)
    if any(min(score.precision, score.recall) < GOAL for score in scores["held out"] + scores["second set"]):
        raise typer.Exit(1)


def _figures(score: Score) -> tuple[str, Text, Text]:
    return str(score.num_marked), _share(score.precision), _share(score.recall)


def _share(value: float) -> Text:
    return Text(f"{value:.3f}", "green" if value >= GOAL else "red")
