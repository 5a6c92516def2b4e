"""Sixteen greedy answers of a whole stack in front of a real vLLM, beside those of the same server asked directly.

``python -m tests.models.external.answers_on_vllm FOLDER ENVIRONMENT [ARGUMENT …]``: the arguments are vLLM's, such as
``--tensor-parallel-size 2``. Prints one line of JSON; exits 1 if an answer differs.
"""

import json
import sys
import time
import urllib.request
from pathlib import Path

from benchmarks.queue import headrace
from benchmarks.queue.services import running_services
from headrace.client import Client
from headrace.models.families.model_folder import small_files
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tokenizer import Tokenizer, load_tokenizer
from tests.models.external.demo_on_vllm import MAX_TOKENS, TOPICS, say
from tests.models.external.real_vllm import MODEL, RealVllm


def main(folder: Path, environment: Path, *arguments: str) -> int:
    """Start both, ask both, and return the exit code."""
    began = time.monotonic()
    server = RealVllm(environment / "bin" / "python", folder, arguments)
    try:
        say(f"vLLM is ready after {time.monotonic() - began:.0f} s, processes: {server.num_processes}")
        tokenizer = load_tokenizer(small_files(folder))
        direct = [_direct(server, topic, tokenizer) for topic in TOPICS]
        register = (MODEL, "--engine", "vllm", "--url", server.url, "--tokenizer", str(folder))
        with running_services() as services, headrace.running(services, say, register=register) as stack:
            client = Client(f"http://127.0.0.1:{stack.port}", stack.api_key)
            found = _through(client)
    finally:
        server.close()
    equal = sum(one == other for one, other in zip(direct, found, strict=True))
    say(json.dumps({"answers": len(found), "equal": equal, "arguments": arguments, "first": found[0][:40]}))
    return 0 if equal == len(TOPICS) else 1


def _direct(server: RealVllm, prompt: str, tokenizer: Tokenizer) -> str:
    """Return the text of the server's own tokens: its text of bytes that are no characters is another."""
    tokens = tokenizer.encode(prompt, add_special=True)
    body = {"model": MODEL, "prompt": tokens, "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
    data = json.dumps({**body, "return_token_ids": True}).encode()
    request = urllib.request.Request(f"{server.url}/v1/completions", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        found = json.load(answer)["choices"][0]["token_ids"]
    detokenizer = Detokenizer(tokenizer)
    return "".join(map(detokenizer.add, found)) + detokenizer.flush()


def _through(client: Client) -> list[str]:
    sampling = {"max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
    ids = [client.submit(model=MODEL, input={"prompt": topic}, sampling=sampling)["id"] for topic in TOPICS]
    return [str(client.result(job_id, timeout_s=600)["text"]) for job_id in ids]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
