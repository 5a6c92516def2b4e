"""The environment of a server that a worker starts."""

import pytest

from store.registry.engine_spec import EngineKind, EngineSpec
from workers.server_command import server_environment


def test_a_cpu_build_of_vllm_does_not_take_the_whole_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert server_environment(EngineSpec(kind=EngineKind.VLLM), "key")["VLLM_CPU_KVCACHE_SPACE"] == "4"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    assert server_environment(EngineSpec(kind=EngineKind.VLLM), "key")["VLLM_CPU_KVCACHE_SPACE"] == "9"
