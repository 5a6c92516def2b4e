"""The output of a recommendation."""

from headrace.features.recommend import inputs as recommend
from headrace.features.recommend.model import RecommendModel
from tests.workers.tasks.test_outputs import ANY, vector


def test_items_come_with_their_attributes_and_unknown_ones_of_the_history_are_named() -> None:
    model = RecommendModel(ANY, ANY, recommend.FAKE, recommend.FAKE_ITEMS)
    job = model.read({"input": {"history": [{"id": "item-1"}, {"id": "gone"}]}, "top_k": 2})
    assert (job.inputs, job.options.history, job.options.top_k) == (((0,),), [1], 2)
    assert job.output([vector(2, 9, 4, 0.75, 0.5)]) == {
        "items": [
            {"id": "item-9", "score": 0.75, "attributes": {"price": 9.0, "category": "b"}},
            {"id": "item-4", "score": 0.5, "attributes": {"price": 4.0, "category": "a"}},
        ],
        "unknown_ids": ["gone"],
    }
    assert model.example == {"input": {"history": [{"id": "item-0"}]}}
