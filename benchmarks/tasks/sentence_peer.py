"""sentence-transformers in an environment of its own, as a child of ``benchmarks.tasks``; imports nothing of ours.

Each line of its input names a task and a file with the texts; each line of its output is JSON: the seconds, the CPU
seconds, and the vectors or scores if a file for them is named.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Load both models, say so, and answer until the input ends."""
    import torch  # noqa: PLC0415 - only the peer's environment has it
    from sentence_transformers import (  # type: ignore[import-not-found]  # noqa: PLC0415 - only the peer's environment has it
        CrossEncoder,
        SentenceTransformer,
    )

    encoder = SentenceTransformer(sys.argv[1], device="cpu")
    reranker = CrossEncoder(sys.argv[2], device="cpu")

    def embed(texts: list[Any]) -> Any:
        return encoder.encode(texts, batch_size=32, normalize_embeddings=True)

    def rerank(pairs: list[Any]) -> Any:
        return reranker.predict(pairs, batch_size=32)

    turns = {"embed": embed, "rerank": rerank}
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        texts = json.loads(Path(asked["texts"]).read_text())
        began, cpu = time.perf_counter(), time.process_time()
        found = turns[asked["task"]](texts)
        took = {"s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
        if asked.get("numbers"):
            Path(asked["numbers"]).write_text(json.dumps(found.tolist()))
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    main()
