"""Properties of the processor."""

from pathlib import Path

import pytest

from headrace.store import machine


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("flags : avx512f amx_bf16", True), ("flags : avx512_bf16", True), ("Features : bf16", True), ("avx512f", False)],
)
def test_a_processor_says_whether_it_has_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(flags)
    monkeypatch.setattr(machine, "CPU_INFO", info)
    assert machine.has_bfloat16() is expected
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "nothing")
    assert machine.has_bfloat16(), "if it is not known"
