"""The recommender without weights."""

from dataclasses import replace
from typing import Any

from headrace.features.recommend.fake_recommender import FakeRecommender
from headrace.features.recommend.inputs import FAKE_ITEMS, RecommendQuery
from headrace.models.engine.requests import EncodeRow
from tests.models.runners.making import floats


def test_the_fake_recommender_sorts_what_the_filter_lets_through() -> None:
    query = RecommendQuery(vector=(1.0,), top_k=1000)
    number = len(FAKE_ITEMS.items)

    def ask(**changes: Any) -> tuple[list[int], list[float]]:
        count, *rest = floats(FakeRecommender().run([EncodeRow("r", (0,), replace(query, **changes))])[0])
        places, scores = rest[: int(count)], rest[int(count) :]
        assert len(places) == len(scores) == count
        return [int(place) for place in places], scores

    places, scores = ask()
    assert sorted(places) == list(range(number))
    assert scores == sorted(scores, reverse=True)
    assert ask(top_k=2) == (places[:2], scores[:2])
    kept = {places[0], places[2]}
    assert ask(only=kept)[0] == [places[0], places[2]]
    assert ask(only=kept, without={places[0]})[0] == [places[2]]
    assert ask(vector=(2.0,))[1] != scores
