"""The command by which a worker starts an inference server for a version: the operator's arguments and its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace.models.families.model_folder import registered_folder
from headrace.store.errors import ModelLoadError, SettingsError
from headrace.store.machine import has_bfloat16, has_nvidia_card
from headrace.store.registry.engine_spec import EngineKind, EngineSpec, check_server_arguments
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.settings import Settings, environment_of_others

HOST = "127.0.0.1"

_GUIDANCE = '{"backend":"guidance","disable_any_whitespace":true}'
"""vLLM's setting by which every grammar is followed, and JSON has no white space, as with Headrace's own engine."""

_SLEEP = ("--enable-sleep-mode",)

_CPU_KV_GIB = "4"
"""The KV cache of vLLM's CPU build, in GiB."""


def server_argv(
    version: ModelVersion, settings: Settings, *, port: int, arguments: Sequence[str], can_sleep: bool = False
) -> list[str]:
    """Return the command of a server for this version, which listens on ``port`` of this machine only.

    ``can_sleep``: with vLLM's sleep mode. Raises SettingsError for arguments that only the worker may give or a missing
    installation, and ModelLoadError for weights that are not the registered ones.
    """
    spec = version.engine
    check_server_arguments(spec.kind, arguments)
    python = _python(spec.kind, settings)
    if spec.weights_digest is None:
        raise ModelLoadError(
            f"{queue_name(version.model, version.version)} was registered without weights, so its worker can start no "
            "server: register it with its SOURCE folder, or with --url, the address of a server"
        )
    folder = registered_folder(version)
    return [str(python), "-P", "-m", *_program(spec, folder, port, python), *_SLEEP * can_sleep, *arguments]


def server_environment(spec: EngineSpec, api_key: str, *, can_sleep: bool = False) -> dict[str, str]:
    """Return the environment of a server. Unless the operator says otherwise it sends no usage statistics.

    vLLM's CPU build would take 92 % of the memory for its KV cache, and ends if less than that is free.

    ``api_key``: what requests must show, because other users of the machine reach the port, too. ``can_sleep``: with
    vLLM's routes to sleep and wake, which ask for no key.
    """
    defaults = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    defaults |= {"VLLM_CPU_KVCACHE_SPACE": _CPU_KV_GIB}
    given = {"VLLM_API_KEY": api_key} if spec.kind is EngineKind.VLLM else {}
    given |= {"VLLM_BATCH_INVARIANT": "1"} if spec.batch_invariant else {}
    given |= {"VLLM_SERVER_DEV_MODE": "1"} if can_sleep else {}
    return defaults | environment_of_others() | given


def engine_folder(kind: EngineKind, settings: Settings) -> Path:
    """Return the environment that `headrace up --engine` makes for a server."""
    return settings.home.absolute() / "engines" / kind.value


def _python(kind: EngineKind, settings: Settings) -> Path:
    python = settings.engine_python or engine_folder(kind, settings) / "bin" / "python"
    if not python.is_file():
        where = "HEADRACE_ENGINE_PYTHON: " if settings.engine_python else ""
        raise SettingsError(
            f"{where}there is no {python}: set HEADRACE_ENGINE_PYTHON to the Python of an environment with "
            f"{kind.value}, or let `headrace up --engine {kind.value}` make one"
        )
    # Not resolved: in an environment it is a link, and the environment is found by the link's own place.
    return python.absolute()


def _program(spec: EngineSpec, folder: Path, port: int, python: Path) -> list[str]:
    """Return the module and its arguments: what was registered is what the server is started with."""
    where = ["--host", HOST, "--port", str(port), "--served-model-name", spec.served_model or folder.name]
    given = {"--quantization": spec.quantization, "--revision": spec.revision}
    wanted = [word for name, value in given.items() if value for word in (name, value)]
    if spec.kind is EngineKind.SGLANG:
        window = ["--context-length", str(spec.context_window)] if spec.context_window else []
        own = ["--grammar-backend", "llguidance", "--enable-priority-scheduling", "--incremental-streaming-output"]
        own += ["--enable-deterministic-inference"] if spec.batch_invariant else []
        return ["sglang.launch_server", "--model-path", str(folder), *where, *own, *wanted, *window]
    window = ["--max-model-len", str(spec.context_window)] if spec.context_window else []
    own = ["--enable-scale-out", "--scheduling-policy", "priority", "--enable-prompt-tokens-details"]
    own += ["--max-logprobs", "21", "--structured-outputs-config", _GUIDANCE]
    if not (has_nvidia_card() or has_bfloat16()):
        # vLLM takes the dtype of the weights. Without instructions for it a product takes up to eight times as long
        # (benchmarks/results/2026-11-28-external-vllm.md). An argument of the operator goes before this one.
        own += ["--dtype", "float32"]
    return [*_VLLM[_is_cpu_package(python)], str(folder), *where, *own, *wanted, *window]


_VLLM: Mapping[bool, Sequence[str]] = {
    False: ("vllm.entrypoints.cli.main", "serve"),
    True: ("vllm.entrypoints.openai.api_server", "--model"),
}
"""`vllm serve`, and the module that it has replaced for the package vllm-cpu, whose `vllm serve` ends at once: it looks
for metadata of a package with the name vllm."""


def _is_cpu_package(python: Path) -> bool:
    return any(python.parent.parent.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info"))
