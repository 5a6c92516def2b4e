"""A real vLLM server with a tiny model, from an environment of its own. Tests kill it and stop it."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from headrace.models.external.vllm import VllmUpstream
from headrace.models.families.model_folder import small_files
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.ports import free_port
from tests.models.external.engines import REAL_WINDOW, Rig, external
from tests.models.tiny import build, save, save_tokenizer

MODEL = "tiny"
_READY_S = 600
PROMPTS = ("The mill by the river", "A recipe for bread:", "Once upon a time")
_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def tiny_model(folder: Path) -> Path:
    """Write a tiny model with a tokenizer that vLLM can load, and return its folder."""
    model = build("llama")
    model.config.max_position_embeddings = REAL_WINDOW
    save_tokenizer(save(model, folder))
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


class RealVllm:
    """Started on construction: the server and its engine are processes of one group."""

    engine_name = "EngineCore"

    def __init__(self, python: Path, folder: Path, arguments: Sequence[str] = ()) -> None:
        self._python = python
        self._arguments = arguments
        self.folder = folder
        self._port = free_port("127.0.0.1", 18200)
        self.url = f"http://127.0.0.1:{self._port}"
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def hang(self) -> None:
        """Stop the engine's process, while the HTTP server answers."""
        for process in self._processes():
            if self.engine_name in process.name() or self.engine_name in " ".join(process.cmdline()):
                process.suspend()

    def freeze(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def restart(self, away_s: float = 0.0) -> None:
        self.close()
        time.sleep(away_s)
        self._start()

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def num_processes(self) -> int:
        return 1 + len(self._processes())

    def _processes(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)

    def _start(self) -> None:
        self._process = self._launch()
        end = time.monotonic() + _READY_S
        while not self._answers():
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server did not come up"
            time.sleep(0.5)

    def _launch(self) -> subprocess.Popen[bytes]:
        command = [str(self._python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder)]
        command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--dtype", "float32", "--max-model-len", str(REAL_WINDOW), "--max-num-seqs", "8", "--enforce-eager"]
        command += ["--enable-scale-out", "--enable-prompt-tokens-details", "--scheduling-policy", "priority"]
        # As a worker starts it. With the default, vLLM 0.33 refuses grammars of another kind than the first one.
        command += ["--structured-outputs-config", '{"backend":"guidance","disable_any_whitespace":true}']
        command += self._arguments
        environment = os.environ | _SETTINGS  # noqa: TID251 - another project's program
        return self._launched(command, environment)

    def _launched(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start the server with its output beside the model's folder, where one looks after a failure."""
        with self.folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command, env=environment, start_new_session=True, stdout=log)

    def _answers(self) -> bool:
        try:
            return self._is_ready()
        except OSError:
            return False

    def _is_ready(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
            return response.status == 200


@contextmanager
def real_vllm(server: RealVllm, prompts: Sequence[str] = PROMPTS) -> Iterator[Rig]:
    """Our engine on the real server."""
    tokenizer = load_tokenizer(small_files(server.folder))
    words = tuple(tuple(tokenizer.encode(text, add_special=False)) for text in prompts)
    with external(
        VllmUpstream(server.url),
        server.url,
        MODEL,
        lambda: VllmUpstream(server.url),
        detokenizer=lambda: Detokenizer(tokenizer),
        eos=tokenizer.eos_token_ids,
        words=words,
        server=server,
        limit_s=10.0,
        window=REAL_WINDOW,
    ) as rig:
        yield rig
