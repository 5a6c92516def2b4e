"""A real SGLang server with a tiny model, from an environment of its own. Tests kill it and stop it.

SGLang has no wheels for CPUs; docs/engines.md says what runs on one.
"""

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from headrace.models.engine.requests import EngineRequest
from headrace.models.external.sglang import SglangUpstream
from headrace.models.families.model_folder import small_files
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tokenizer import load_tokenizer
from tests.models.external.engines import REAL_WINDOW, Rig, external
from tests.models.external.real_vllm import PROMPTS, RealVllm

MODEL = "tiny"
_SETTINGS = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    # Otherwise the first grammar and the first repetition penalty are compiled: over a minute on a busy machine.
    "TORCHDYNAMO_DISABLE": "1",
}


class RealSglang(RealVllm):
    """Started on construction: the server, its scheduler and its detokenizer are processes of one group."""

    engine_name = "sglang::scheduler"

    def _launch(self) -> subprocess.Popen[bytes]:
        command = [str(self._python), "-m", "sglang.launch_server", "--model-path", str(self.folder)]
        command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"]
        command += ["--dtype", "float32", "--context-length", str(REAL_WINDOW), "--max-total-tokens", "65536"]
        command += ["--max-running-requests", "8", "--disable-cuda-graph", "--disable-overlap-schedule"]
        command += ["--enable-priority-scheduling", "--grammar-backend", "llguidance", "--sleep-on-idle"]
        command += ["--skip-server-warmup"]
        environment = os.environ | _SETTINGS  # noqa: TID251 - another project's program
        return self._launched(command, environment)

    def _is_ready(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/ready", timeout=5) as response:
            return response.status == 200


@contextmanager
def real_sglang(server: RealSglang, **how: Any) -> Iterator[Rig]:
    """Our engine on the real server."""
    tokenizer = load_tokenizer(small_files(server.folder))
    with external(
        SglangUpstream(server.url),
        server.url,
        MODEL,
        lambda: SglangUpstream(server.url),
        detokenizer=lambda: Detokenizer(tokenizer),
        eos=tokenizer.eos_token_ids,
        words=tuple(tuple(tokenizer.encode(text, add_special=False)) for text in PROMPTS),
        server=server,
        limit_s=10.0,
        window=REAL_WINDOW,
        **how,
    ) as rig:
        rig.direct = lambda request: answer_of_sglang(server.url, request)
        yield rig


def answer_of_sglang(url: str, request: EngineRequest) -> tuple[int, ...]:
    """Ask an SGLang server without any code of ours."""
    sampling: dict[str, Any] = {"temperature": 0, "max_new_tokens": request.sampling.max_tokens}
    sampling["ignore_eos"] = request.sampling.ignore_eos
    body = json.dumps({"input_ids": request.prompt, "sampling_params": sampling}).encode()
    ask = urllib.request.Request(f"{url}/generate", body, {"content-type": "application/json"})
    with urllib.request.urlopen(ask, timeout=120) as response:
        return tuple(json.load(response)["output_ids"])
