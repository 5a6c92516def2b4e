"""What prompt lookup is worth: ``python -m benchmarks.lookup FOLDER --rounds 5``.

The same requests with speculation and without, in turn, so that a drift of the machine's speed affects both; the ratio
is the median of the rounds' ratios. Tasks that copy much of their prompt, one at a time; and, for the cost
without anything to copy, the chat jobs of the other benchmarks and open questions, one at a time and many
together. Prints a table and, as its last line, JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.workload import chat_jobs
from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import EngineRequest, SamplingParams
from headrace.models.engine.runner import Runner
from headrace.models.families.model_folder import small_files
from headrace.models.loading.torch_load import runner_for
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tasks.generate import build_prompt
from headrace.prompts.tokenizer import Tokenizer, load_tokenizer
from headrace.store.payloads.conversation import ChatMessage, Role
from headrace.store.settings import Settings
from headrace.store.tasks.generate import GenerateInput

console = Console(stderr=True)

TEXTS = [
    "The mill stood at the bend of the river, and its wheel had turned since the time of the old bridge. In spring the "
    "water came down from the hills, brown and quick, and the miller opened the upper gate only a hand's breadth. In "
    "summer he opened it to the last notch, and still the stones went slowly, so that the farmers waited in the shade "
    "of the lime trees with their carts, and told each other what the winter had cost them.",
    "Minutes of the meeting of 4 March. Present: Ms Okafor, Mr Lind, Ms Sato, Mr Duarte. The budget for the second "
    "quarter was agreed at 48,500, of which 12,000 are for the new pumps. Mr Lind reports that the order number is "
    "PX-2207-B and that delivery is due on 19 April. Ms Sato asks that the old pumps be kept until the end of May. The "
    "next meeting is on 2 April at 10:30 in room 3.12; Mr Duarte will bring the drawings of the east wing.",
]
CODE = [
    "def average_price(orders, currency):\n    total = 0\n    count = 0\n    for order in orders:\n"
    "        if order.currency == currency and not order.cancelled:\n"
    "            total += order.price * order.quantity\n"
    "            count += order.quantity\n    if count == 0:\n        return None\n    return total / count\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n"
    "        self.items.append(item)\n\n    def pop(self):\n        if not self.items:\n"
    '            raise IndexError("pop from an empty stack")\n        return self.items.pop()\n\n'
    "    def __len__(self):\n        return len(self.items)\n",
]
QUESTIONS = [
    "Write a short story about a lighthouse keeper.",
    "Why is the sky blue?",
    "Give me some advice on learning to cook.",
    "What was the Silk Road?",
    "Describe a walk through a forest in autumn.",
    "How does a steam engine work?",
    "Write a letter to an old friend whom you have not seen for years.",
    "What makes a good teacher?",
    "Explain to a child where rain comes from.",
    "Which animals live in the desert, and how?",
    "Tell me about the history of paper.",
    "Invent a new sport and give its rules.",
]


@dataclass(frozen=True)
class Task:
    """Requests of one kind, and how many of them run together."""

    name: str
    requests: tuple[EngineRequest, ...]
    max_slots: int


@dataclass(frozen=True)
class Run:
    """The duration and the answers of one run of a task."""

    seconds: float
    answers: Mapping[str, tuple[int, ...]]
    drafted: int
    accepted: int

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return sum(map(len, self.answers.values())) / self.seconds


def tasks(tokenizer: Tokenizer) -> list[Task]:
    """Tasks that copy first, then tasks without anything to copy."""

    def asked(questions: Sequence[str], max_tokens: Callable[[str], int]) -> tuple[EngineRequest, ...]:
        prompts = [
            build_prompt(tokenizer, GenerateInput(messages=(ChatMessage(role=Role.USER, content=each),)))
            for each in questions
        ]
        return tuple(
            EngineRequest(f"r{n}", tuple(prompt), SamplingParams(max_tokens(question)))
            for n, (question, prompt) in enumerate(zip(questions, prompts, strict=True))
        )

    def length(text: str) -> int:
        return len(tokenizer.encode(text, add_special=False)) + 16

    copies = asked([f"Repeat this text word for word:\n\n{text}" for text in TEXTS], length)
    edits = asked(
        [f"Add a docstring to this code and give all of it back:\n\n```python\n{text}```" for text in CODE], length
    )
    open_ended = asked(QUESTIONS, lambda question: 96)
    chat = tuple(
        EngineRequest(
            f"r{n}", tuple(build_prompt(tokenizer, job.payload.input)), SamplingParams(job.max_tokens, ignore_eos=True)
        )
        for n, job in enumerate(chat_jobs(16))
    )
    return [
        Task("repeat a text", copies, 1),
        Task("edit code", edits, 1),
        Task("open questions", open_ended[:4], 1),
        Task("open questions", open_ended, 4),
        Task("open questions", open_ended, 8),
        Task("chat jobs", chat[:4], 1),
        Task("chat jobs", chat, 4),
        Task("chat jobs", chat, 16),
    ]


def run(runner: Runner, tokenizer: Tokenizer, task: Task, *, speculation: bool, salt: str) -> Run:
    """Run a task's requests in a new engine; ``salt`` keeps it from finding the prompts of an earlier run."""
    config = EngineConfig(task.max_slots, speculation=speculation)
    engine = LLMEngine(runner, lambda: Detokenizer(tokenizer), config, on_deltas=lambda deltas: None)
    engine.start()
    start = time.perf_counter()
    futures = [engine.submit(replace(each, cache_salt=salt)) for each in task.requests]
    wait(futures)
    seconds = time.perf_counter() - start
    stats = engine.stats()
    engine.stop(5)
    answers = {done.request_id: done.token_ids for done in (future.result() for future in futures)}
    return Run(seconds, answers, stats.drafted_tokens, stats.accepted_tokens)


def compare(runner: Runner, tokenizer: Tokenizer, task: Task, rounds: int) -> dict[str, object]:
    """Measure one task, each round without and with."""
    pairs = [
        tuple(run(runner, tokenizer, task, speculation=on, salt=f"{n} {on}") for on in order)
        for n in range(rounds)
        for order in [(False, True) if n % 2 else (True, False)]
    ]
    pairs = [pair if n % 2 else pair[::-1] for n, pair in enumerate(pairs)]
    ratios = [with_it.tokens_per_s / without.tokens_per_s for without, with_it in pairs]
    without, with_it = pairs[-1]
    console.print(f"{task.name}, {task.max_slots} together: {' '.join(f'{each:.2f}' for each in ratios)}")
    return {
        "task": task.name,
        "together": task.max_slots,
        "tokens_per_s_without": round(statistics.median(each.tokens_per_s for each, _ in pairs), 1),
        "tokens_per_s_with": round(statistics.median(each.tokens_per_s for _, each in pairs), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(each, 3) for each in ratios],
        "output_tokens": sum(map(len, with_it.answers.values())),
        "guessed": with_it.drafted,
        "right": with_it.accepted,
        "answers_alike": sum(with_it.answers[name] == answer for name, answer in without.answers.items()),
        "answers": len(task.requests),
    }


def show(results: Sequence[Mapping[str, object]], dtype: str) -> None:
    """Print the table for people and the JSON for programs."""
    table = Table(title=f"output tokens/s without and with prompt lookup, {dtype}")
    keys = [key for key in results[0] if key != "ratios"]
    for key in keys:
        table.add_column(key.replace("_", " "), justify="right")
    for each in results:
        table.add_row(*(str(each[key]) for key in keys))
    console.print(table)
    print(json.dumps({"benchmark": "lookup", "dtype": dtype, "threads": torch.get_num_threads(), "results": results}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lookup", description=__doc__)
    parser.add_argument("folder", type=Path, help="a model folder")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    options = parser.parse_args()
    tokenizer = load_tokenizer(small_files(options.folder))
    runner = runner_for(options.folder, Settings(kv_pool_tokens=16_384), dtype=options.dtype)
    chosen = [task for task in tasks(tokenizer) if options.only in task.name]
    run(runner, tokenizer, chosen[0], speculation=True, salt="warm")
    show([compare(runner, tokenizer, task, options.rounds) for task in chosen], options.dtype)


if __name__ == "__main__":
    main()
