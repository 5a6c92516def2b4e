"""The recommender without weights: the score of an item is a hash of the user and the item, between 0 and 1."""

import struct
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b

from headrace.features.recommend.inputs import FAKE_ITEMS, RecommendQuery
from headrace.features.recommend.task import MAX_TOP_K
from headrace.models.engine.requests import EncodeRow


class FakeRecommender:
    """An ``Encoder`` of users, as ``features.recommend.torch_recommender``. A pass takes ``step_s``."""

    context_window = MAX_TOP_K

    def __init__(self, *, step_s: float = 0.0, sleep: Callable[[float], object] = time.sleep) -> None:
        self.step_s = step_s
        self.sleep = sleep

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return for each row the places and scores of its items."""
        if self.step_s:
            self.sleep(self.step_s)
        return [_best(row.options) for row in rows]


def _best(query: RecommendQuery) -> bytes:
    allowed = set(range(len(FAKE_ITEMS.items)) if query.only is None else query.only) - set(query.without)
    matching = [place for place in sorted(allowed) if all(FAKE_ITEMS.items[place].matches(one) for one in query.where)]
    best = sorted(matching, key=lambda place: -_score(query, place))[: query.top_k]
    return struct.pack(f"<{2 * len(best) + 1}f", len(best), *best, *(_score(query, place) for place in best))


def _score(query: RecommendQuery, place: int) -> float:
    user = repr((query.vector, query.history, query.weights, place))
    return int.from_bytes(blake2b(user.encode(), digest_size=2).digest()) / 65_536
