"""What the engines are asked to compute: fixed by a seed, token ids alone, so that all get exactly the same.

Lengths are log-uniform, answers greedy with end-of-sequence ignored, so that every engine computes the same number of
tokens. A round has words of its own over the lengths of all rounds: no engine finds one round's prompts in its cache
from another's, and yet the rounds cost alike.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.engine.peers.wire import Request
from benchmarks.workload import WORDS

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Shape:
    """How many requests, and the least and most tokens of prompt and answer. ``shared`` tokens begin every prompt."""

    requests: int = 64
    prompt: tuple[int, int] = (16, 512)
    output: tuple[int, int] = (8, 256)
    shared: int = 0


SHAPES = {
    "mixed": Shape(),
    "prefix": Shape(prompt=(8, 64), output=(8, 128), shared=400),
    "long": Shape(requests=16, prompt=(1024, 1800), output=(8, 128)),
}


def requests_of(shape: Shape, encode: Encode, seed: int, number: int = 0) -> tuple[Request, ...]:
    """Return the requests of round ``number``, all at t = 0. A larger shape begins with the same requests.

    Raises ValueError if a word is not exactly one token, for then the lengths would not be what they should be.
    """
    lengths, words = random.Random(f"{seed} lengths"), random.Random(f"{seed} words of round {number}")
    system = text(words, encode, shape.shared)
    return tuple(
        Request(
            id=f"r{n}",
            prompt=(*system, *text(words, encode, _between(lengths, *shape.prompt))),
            max_tokens=_between(lengths, *shape.output),
        )
        for n in range(shape.requests)
    )


def arriving(requests: Sequence[Request], per_s: float, seed: int) -> tuple[Request, ...]:
    """Return the requests at Poisson arrivals of ``per_s`` a second on the average."""
    draw = random.Random(f"{seed} arrivals")
    at_s, arrived = 0.0, []
    for each in requests:
        at_s += draw.expovariate(per_s)
        arrived.append(replace(each, at_s=round(at_s, 4)))
    return tuple(arrived)


def text(draw: random.Random, encode: Encode, tokens: int) -> tuple[int, ...]:
    """Return the ids of so many words, each of which must be one token."""
    ids = tuple(encode("".join(f" {word}" for word in draw.choices(WORDS, k=tokens))))
    if len(ids) != tokens:
        raise ValueError(f"{tokens} words became {len(ids)} tokens: this tokenizer needs other words")
    return ids


def _between(draw: random.Random, low: int, high: int) -> int:
    """A log-uniform whole number from ``low`` to ``high``."""
    return round(math.exp(draw.uniform(math.log(low), math.log(high))))
