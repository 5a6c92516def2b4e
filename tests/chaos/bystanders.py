"""Orders with webhook receivers, good ones alone at first and then beside bad ones (P11)."""

import random
import threading
from collections.abc import Iterator

from tests.chaos.load import Order

BAD = ("500", "rst", "slow", "301", "410", "429")
LETS_BAD_IN = threading.Event()


def with_receivers(seed: int) -> Iterator[Order]:
    """Yield short jobs; after the start of the bad receivers every second job has one of them, in its own tenant."""
    rng = random.Random(seed)
    n = 0
    while True:
        is_bad = LETS_BAD_IN.is_set() and n % 2 == 1
        yield Order(
            n=n,
            tenant=2 if is_bad else n % 2,
            prompt=f"run {seed}, order {n}: for a receiver.",
            max_tokens=rng.choice((8, 16, 24)),
            follow="forget",
            hook=rng.choice(BAD) if is_bad else "ok",
        )
        n += 1
