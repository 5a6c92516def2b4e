"""The figures and the blocks of docs/choosing.md."""

import re
import shlex
from pathlib import Path

import pytest

from headrace.features.planner.__main__ import main

PATH = Path(__file__).parents[1] / "docs" / "choosing.md"
PAGE = PATH.read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FIGURE = r"\d+(?:,\d{3})*(?:\.\d+)?"
ROWS = re.findall(r"^\| (.+) \| \[.*, (\d{4}-\d\d-\d\d)\]\((\S+)\) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("cells", "date", "source"), ROWS, ids=[cells.split(" |")[0][:40] for cells, _, _ in ROWS])
def test_each_figure_of_a_row_is_in_its_source(cells: str, date: str, source: str) -> None:
    assert source.startswith(f"../benchmarks/results/{date}-")
    measured = set(re.findall(FIGURE, (PATH.parent / source).read_text()))
    missing = [figure for figure in re.findall(FIGURE, re.sub(r"`[^`]*`", "", cells)) if figure not in measured]
    assert missing == []


def test_each_row_of_figures_names_its_source() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.endswith("| source |")]
    assert len(rows) == len(ROWS) > 0


@pytest.mark.full
def test_its_commands_give_the_advice_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (_, rates), (_, commands), (_, shown) = BLOCKS
    assert [language for language, _ in BLOCKS] == ["json", "sh", ""]
    Path("smollm2.json").write_text(rates)
    for command, advice in zip(commands.splitlines(), shown.splitlines(), strict=True):
        program, verb, *arguments = shlex.split(command)
        assert (program, verb) == ("headrace", "plan")
        assert main(arguments) == 0
        assert f"\n{advice.removesuffix('…')}" in capsys.readouterr().out
