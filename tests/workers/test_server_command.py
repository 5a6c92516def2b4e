"""The environment of a server that a worker starts."""

from itertools import pairwise
from pathlib import Path

import pytest

from store import machine
from store.errors import SettingsError
from store.registry.engine_spec import EngineKind, EngineSpec
from workers.server_command import _program, check_arguments, server_environment


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


def _argv(tmp_path: Path, spec: EngineSpec) -> list[str]:
    return _program(spec, tmp_path, 8123)


def test_a_server_is_started_with_what_was_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.server_command.has_nvidia_card", lambda: True)
    given = {"served_model": "org/mill", "quantization": "fp8", "revision": "main", "context_window": 4096}
    where = ["--host", "127.0.0.1", "--port", "8123", "--served-model-name", "org/mill"]
    wanted = ["--quantization", "fp8", "--revision", "main"]
    guidance = '{"backend":"guidance","disable_any_whitespace":true}'
    vllm = EngineSpec(kind=EngineKind.VLLM, **given)
    own = ["--enable-scale-out", "--scheduling-policy", "priority", "--enable-prompt-tokens-details"]
    own += ["--max-logprobs", "21", "--structured-outputs-config", guidance]
    module = ["vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
    assert _argv(tmp_path, vllm) == [*module, *where, *own, *wanted, "--max-model-len", "4096"]
    bare = _argv(tmp_path, EngineSpec(kind=EngineKind.VLLM))
    assert bare == [*module, *where[:-1], tmp_path.name, *own]
    module = ["sglang.launch_server", "--model-path", str(tmp_path)]
    own = ["--grammar-backend", "llguidance", "--enable-priority-scheduling", "--incremental-streaming-output"]
    sglang = EngineSpec(kind=EngineKind.SGLANG, batch_invariant=True, **given)
    deterministic = ["--enable-deterministic-inference"]
    assert _argv(tmp_path, sglang) == [*module, *where, *own, *deterministic, *wanted, "--context-length", "4096"]
    plain = sglang.model_copy(update={"batch_invariant": False})
    assert _argv(tmp_path, plain) == [*module, *where, *own, *wanted, "--context-length", "4096"]


def test_the_environment_of_a_server_has_its_key_and_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "workers.server_command.environment_of_others", lambda: {"DO_NOT_TRACK": "0", "VLLM_API_KEY": "x"}
    )
    plain = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "0", "PYTHONUNBUFFERED": "1", "VLLM_CPU_KVCACHE_SPACE": "4"}
    vllm = EngineSpec(kind=EngineKind.VLLM)
    assert server_environment(vllm, "key") == {**plain, "VLLM_API_KEY": "key"}
    invariant = vllm.model_copy(update={"batch_invariant": True})
    asleep = {"VLLM_BATCH_INVARIANT": "1", "VLLM_SERVER_DEV_MODE": "1"}
    assert server_environment(invariant, "key", can_sleep=True) == {**plain, "VLLM_API_KEY": "key", **asleep}
    assert server_environment(EngineSpec(kind=EngineKind.SGLANG), "key") == {**plain, "VLLM_API_KEY": "x"}


@pytest.mark.parametrize(
    ("kind", "arguments", "reason"),
    [
        (EngineKind.OPENAI, [], "a worker cannot start a server of the kind openai: register it with its --url"),
        (
            EngineKind.VLLM,
            ["--port=1", "--seed", "3", "--api-key", "x", "--port", "2"],
            "the worker gives --api-key, --port itself: leave it out",
        ),
        (EngineKind.SGLANG, ["--model-path", "x"], "the worker gives --model-path itself: leave it out"),
    ],
)
def test_arguments_that_only_the_worker_may_give_are_refused(
    kind: EngineKind, arguments: list[str], reason: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        check_arguments(kind, arguments)
    assert refused.value.message == reason
    check_arguments(EngineKind.VLLM, ["--seed", "3", "--model-path", "x"])
