"""lm-eval over text completions: log-likelihoods of continuations, rolling ones, and generation."""

import asyncio
import json
import os
import tempfile
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from reporting import BASE_URL, MODEL, feature, main

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TASK = """
task: capitals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_target: 0
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
"""
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid"}


def texts() -> LocalCompletionsAPI:
    return LocalCompletionsAPI(
        model=MODEL,
        base_url=f"{BASE_URL}/completions",
        tokenizer_backend="huggingface",
        tokenizer=os.environ["TOKENIZER_FOLDER"],
        max_retries=1,
        max_length=2048,
        num_concurrent=1,
    )


def instance(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@feature("generation")
def generation() -> None:
    limits = {"until": ["."], "max_gen_toks": 12, "temperature": 0}
    (said,) = texts().generate_until([instance("generate_until", "The capital of France is", limits)])
    assert "Paris" in said
    chat = LocalChatCompletion(model=MODEL, base_url=f"{BASE_URL}/chat/completions", max_retries=1, num_concurrent=1)
    question = json.dumps([{"role": "user", "content": "What is the capital of France?"}])
    assert chat.generate_until([instance("generate_until", JsonChatStr(question), limits)])


@feature("log-likelihoods of a task")
def task() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "capitals.jsonl"
        others = list(CAPITALS.values())
        rows = [
            {"country": country, "choices": [city, *(other for other in others if other != city)]}
            for country, city in CAPITALS.items()
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (Path(folder) / "capitals.yaml").write_text(TASK.format(data=data))
        found = simple_evaluate(
            model=texts(), tasks=["capitals"], task_manager=TaskManager(include_path=folder, include_defaults=False)
        )
    assert found["results"]["capitals"]["acc,none"] >= 0.75, found["results"]


main(asyncio.run)
