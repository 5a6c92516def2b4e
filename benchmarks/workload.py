"""The chat jobs that every benchmark of the language model runs: fixed by a seed, mixed in length.

Prompts of 16 to 512 words and answers of 8 to 256 tokens, both log-uniform, greedy, end-of-sequence ignored, so that
every engine computes the same number of tokens.
"""

import math
import random
from dataclasses import dataclass

from headrace.store.payloads.conversation import ChatMessage, Role
from headrace.store.payloads.sampling_params import Sampling
from headrace.store.tasks.generate import GenerateInput, GeneratePayload

_TEXT = (
    "the river runs down from a hill and turns old wheel while people in town bake bread sell wool write letters ask "
    "for rain count days build bridges mend boats light lamps keep bees paint doors plant trees sing songs tell tales"
)
WORDS = _TEXT.split()


@dataclass(frozen=True)
class ChatJob:
    """One job: the user's message and how many tokens to answer."""

    text: str
    max_tokens: int
    ignore_eos: bool = True

    @property
    def payload(self) -> GeneratePayload:
        """The job as the worker would read it from its row."""
        message = ChatMessage(role=Role.USER, content=self.text)
        sampling = Sampling(max_tokens=self.max_tokens, temperature=0, ignore_eos=self.ignore_eos)
        return GeneratePayload(input=GenerateInput(messages=(message,)), sampling=sampling)


def chat_jobs(count: int, seed: int = 7) -> list[ChatJob]:
    """The first ``count`` jobs of the workload; a longer one begins with the same jobs."""
    draw = random.Random(seed)
    return [
        ChatJob(
            text="Go on with this story: " + " ".join(draw.choices(WORDS, k=_between(draw, 16, 512) - 10)),
            max_tokens=_between(draw, 8, 256),
        )
        for _ in range(count)
    ]


def _between(draw: random.Random, low: int, high: int) -> int:
    """A log-uniform whole number from ``low`` to ``high``."""
    return round(math.exp(draw.uniform(math.log(low), math.log(high))))
