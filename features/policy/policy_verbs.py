"""``headrace policy``: apply a policy to sample texts. Needs no server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from headrace.cli.render import JsonOption, show
from headrace.policy.budget import ScanTooLong
from headrace.policy.deny import check_size
from headrace.policy.documents import Action, PolicyDocument, Rule
from headrace.policy.outputs import MissingFinder
from headrace.policy.policies import Policy, apply_input, apply_output
from headrace.policy.recognisers.recogniser import STRUCTURED
from headrace.policy.streaming import Hit
from headrace.policy.text.patterns import BadPattern
from headrace.store.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Try policies out.")

_STYLES = {
    Action.ALLOW: "green",
    Action.FLAG: "yellow",
    Action.MASK: "magenta",
    Action.REDACT: "cyan",
    Action.BLOCK: "bold white on red",
}
_EVERYTHING = PolicyDocument(rules=(Rule(id="everything", action=Action.REDACT, kinds=STRUCTURED),))


@app.callback()
def _group() -> None:
    """Keep the name of the one command."""


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
