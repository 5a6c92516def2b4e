"""How often a contestant's next token is the one that transformers finds in float32: the quality beside its speed.

Asked through the same door as everything else: a beginning of a text, one token wanted. So it judges what an engine
really computes, its cache and its kernels included, and needs no logits, which most of them do not give.
"""

import random
from collections.abc import Sequence

from benchmarks.engine.peers.wire import Answer, Request
from benchmarks.engine.workloads import Encode
from headrace.models.quality.texts import TEXTS

_LEAST_TOKENS = 8
_SEED = 11


def beginnings(encode: Encode, count: int, texts: Sequence[str] = TEXTS) -> tuple[Request, ...]:
    """Return ``count`` beginnings of the texts, of lengths drawn evenly, each text as often as the others."""
    draw = random.Random(_SEED)
    encoded = [tuple(encode(each)) for each in texts]
    chosen = [encoded[n % len(encoded)] for n in range(count)]
    return tuple(
        Request(f"q{n}", ids[: draw.randint(min(_LEAST_TOKENS, len(ids)), len(ids))], 1) for n, ids in enumerate(chosen)
    )


def agreement(reference: Answer, answer: Answer) -> float:
    """Return the share of requests with the same token as the reference."""
    expected = {each.id: each.token_ids for each in reference.outcomes}
    return sum(each.token_ids == expected[each.id] for each in answer.outcomes) / len(answer.outcomes)
