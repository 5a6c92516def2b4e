"""``make gpu`` without a card: a clear refusal, and the table of figures that a card would give."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.engine import gpu
from benchmarks.engine.contestants import PEERS
from benchmarks.engine.workloads import Shape

PEER = """
import sys
sys.path.insert(0, {peers!r})
from wire import Clock, Loaded, serve
def run(ask):
    clock = Clock(ask.requests)
    for each in ask.requests:
        clock.note(each.id, range(each.max_tokens))
    clock.note_kv(0.25)
    return clock
serve(lambda: Loaded(run, "1.2", facts={{"pool_tokens": 4096}}))
"""


def test_it_refuses_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device, and torch finds none here"):
        gpu.card()


def test_the_table_has_a_row_for_each_that_runs(tmp_path: Path) -> None:
    script = tmp_path / "peer.py"
    script.write_text(PEER.format(peers=str(PEERS)))
    said: list[str] = []
    commands: dict[str, list[str | Path]] = {
        "Headrace": [sys.executable, script],
        "vLLM": [sys.executable, "-c", "raise SystemExit('no such card')"],
    }
    rounds = gpu.workload(lambda text: list(range(len(text.split()))), Shape(requests=4), 2)
    rows = gpu.compare(commands, rounds, said.append)
    assert [(row.name, row.version, row.kv_peak, row.pool_tokens) for row in rows] == [("Headrace", "1.2", 0.25, 4096)]
    assert any("vLLM is absent: exit 1" in each for each in said)
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(gpu.table("one card", rows))
    text = console.export_text()
    assert "25%" in text
    assert "4,096" in text
