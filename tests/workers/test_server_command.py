"""The environment of a server that a worker starts."""

from itertools import pairwise
from pathlib import Path

import pytest

from store import machine
from store.registry.engine_spec import EngineKind, EngineSpec
from workers.server_command import _program, server_environment


def test_a_cpu_build_of_vllm_does_not_take_the_whole_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert server_environment(EngineSpec(kind=EngineKind.VLLM), "key")["VLLM_CPU_KVCACHE_SPACE"] == "4"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    assert server_environment(EngineSpec(kind=EngineKind.VLLM), "key")["VLLM_CPU_KVCACHE_SPACE"] == "9"


@pytest.mark.parametrize(("flags", "chosen"), [("fpu avx2", ["float32"]), ("fpu avx512_bf16", []), ("amx_bf16", [])])
def test_a_cpu_build_of_vllm_uses_numbers_that_the_processor_has_instructions_for(
    flags: str, chosen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(machine, "_CPU_INFO", cpu_info)
    monkeypatch.setattr("workers.server_command.has_nvidia_card", lambda: False)
    argv = _program(EngineSpec(kind=EngineKind.VLLM), tmp_path, 1)
    assert [word for before, word in pairwise(argv) if before == "--dtype"] == chosen
