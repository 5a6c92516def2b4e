"""Recommendations held to a plain search: every item scored and filtered one by one."""

import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.features.predict.feature_schema import read_config
from headrace.features.recommend.inputs import RecommenderConfig, RecommendQuery, query_of
from headrace.features.recommend.items import Items, read_items
from headrace.features.recommend.task import RecommendPayload
from headrace.features.recommend.torch_recommender import TorchRecommender, recommender_for
from headrace.models.engine.requests import EncodeRow
from headrace.models.families.model_folder import describe
from headrace.store.errors import InvalidRequest, ModelLoadError
from headrace.store.settings import Settings
from tests.refusals import Naming

SETTINGS = Settings(device="cpu")
NUM_ITEMS = 200
DIMENSIONS = 6
ATTRIBUTES = {"price": "number", "category": "text", "in_stock": "boolean"}


def build_recommender(folder: Path, **changes: object) -> Path:
    """Write a recommender with random vectors; some items lack attributes."""
    folder.mkdir(parents=True)
    config = {"model_type": "headrace-recommender", "dimensions": DIMENSIONS, "attributes": ATTRIBUTES, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    rng = random.Random(5)
    lines = []
    for number in range(NUM_ITEMS):
        values = {"price": rng.randrange(100), "category": rng.choice("abc"), "in_stock": rng.random() < 0.5}
        kept = {name: value for name, value in values.items() if rng.random() < 0.8}
        lines.append(json.dumps({"id": f"i{number}", "attributes": kept}))
    (folder / "items.jsonl").write_text("\n".join(lines))
    torch.manual_seed(5)
    save_file({"items.weight": torch.randn(NUM_ITEMS, DIMENSIONS)}, folder / "model.safetensors")
    return folder


def items_of(folder: Path) -> Items:
    config = read_config(RecommenderConfig, (folder / "config.json").read_bytes())
    return read_items((folder / "items.jsonl").read_bytes(), config.attributes)


def plain_search(folder: Path, body: dict[str, Any], *, is_cosine: bool) -> list[tuple[str, float]]:
    """Score each item alone, leave out what the filter does, and sort."""
    payload = RecommendPayload.model_validate(body)
    vectors, items = load_file(folder / "model.safetensors")["items.weight"].double(), items_of(folder)
    if is_cosine:
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
    history = [one for one in payload.input.history or () if one.id in items.places]
    if payload.input.vector is not None:
        user = torch.tensor(payload.input.vector, dtype=torch.float64)
    else:
        weights = torch.tensor([one.weight for one in history], dtype=torch.float64)
        user = weights @ vectors[[items.places[one.id] for one in history]] / weights.sum()
    user = user / user.norm() if is_cosine else user
    gone = {one.id for one in history} if payload.exclude_history else set()
    only = payload.filter.include_ids
    found = [
        (item.id, float(vector @ user))
        for item, vector in zip(items.items, vectors, strict=True)
        if item.id not in gone
        and item.id not in payload.filter.exclude_ids
        and (only is None or item.id in only)
        and all(item.matches(one) for one in payload.filter.where)
    ]
    return sorted(found, key=lambda one: -one[1])[: payload.top_k]


def run(runner: TorchRecommender, items: Items, queries: Sequence[RecommendQuery]) -> list[list[tuple[str, float]]]:
    answers = []
    for vector in runner.run([EncodeRow(str(n), (0,), query) for n, query in enumerate(queries)]):
        count, *rest = struct.unpack(f"<{len(vector or b'') // 4}f", vector or b"")
        half = int(count)
        answers.append([(items.items[int(p)].id, s) for p, s in zip(rest[:half], rest[half:], strict=True)])
    return answers


HISTORY = [{"id": "i3"}, {"id": "i50", "weight": 2.5}, {"id": "nobody"}]
BODIES: list[dict[str, Any]] = [
    {"input": {"vector": [1, 0, -1, 0.5, 2, 0]}},
    {"input": {"history": HISTORY}, "top_k": 20},
    {"input": {"history": HISTORY}, "exclude_history": False, "top_k": NUM_ITEMS},
    {"input": {"history": HISTORY}, "filter": {"include_ids": ["i3", "i7", "i9", "nobody"], "exclude_ids": ["i9"]}},
    {"input": {"history": HISTORY}, "filter": {"where": [{"attribute": "price", "minimum": 20, "maximum": 60}]}},
    {"input": {"history": HISTORY}, "filter": {"where": [{"attribute": "price", "one_of": [7, 8.0, 41]}]}},
    {
        "input": {"vector": [0, 1, 0, 0, 0, 1]},
        "filter": {
            "where": [
                {"attribute": "category", "one_of": ["a", "z"]},
                {"attribute": "in_stock", "one_of": [True]},
                {"attribute": "price", "maximum": 90},
            ]
        },
    },
    {"input": {"history": HISTORY}, "filter": {"where": [{"attribute": "category", "one_of": ["z"]}]}},
]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_best_items_are_those_of_a_plain_search(similarity: str, tmp_path: Path) -> None:
    folder = build_recommender(tmp_path / "model", similarity=similarity)
    items, config = items_of(folder), read_config(RecommenderConfig, (folder / "config.json").read_bytes())
    queries = [query_of(RecommendPayload.model_validate(body), config, items) for body in BODIES]
    found = run(recommender_for(folder, SETTINGS), items, queries)
    for body, answer in zip(BODIES, found, strict=True):
        expected = plain_search(folder, body, is_cosine=similarity == "cosine")
        assert [name for name, _ in answer] == [name for name, _ in expected], body
        assert [score for _, score in answer] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert found[-1] == [], "no item is let through"


TOWER: dict[str, Any] = {
    "features": [
        {"name": "age", "type": "number", "mean": 40, "scale": 10},
        {"name": "land", "type": "category", "categories": ["ch", "de"], "dimensions": 2},
    ],
    "hidden": [4],
    "activation": "tanh",
}


def test_the_features_of_a_user_go_through_the_tower(tmp_path: Path) -> None:
    folder = build_recommender(tmp_path / "model", user_tower=TOWER)
    items, config = items_of(folder), read_config(RecommenderConfig, (folder / "config.json").read_bytes())
    made = {name: torch.randn(*shape) for name, shape in (("embeddings.land.weight", (2, 2)),)}
    made |= {"layers.0.weight": torch.randn(4, 3), "layers.0.bias": torch.randn(4)}
    made |= {"layers.1.weight": torch.randn(DIMENSIONS, 4), "layers.1.bias": torch.randn(DIMENSIONS)}
    vectors = load_file(folder / "model.safetensors")["items.weight"]
    save_file(
        {f"user_tower.{name}": tensor for name, tensor in made.items()} | {"items.weight": vectors},
        folder / "model.safetensors",
    )
    bodies = [{"input": {"features": {"age": age, "land": land}}, "top_k": 3} for age, land in ((55, "de"), (20, "ch"))]
    queries = [query_of(RecommendPayload.model_validate(body), config, items) for body in bodies]
    for (number, row), answer in zip(
        ((1.5, 1), (-2.0, 0)), run(recommender_for(folder, SETTINGS), items, queries), strict=True
    ):
        inputs = torch.cat([torch.tensor([number]), made["embeddings.land.weight"][row]])
        hidden = (made["layers.0.weight"] @ inputs + made["layers.0.bias"]).tanh()
        scores = vectors @ (made["layers.1.weight"] @ hidden + made["layers.1.bias"])
        best, places = scores.topk(3)
        assert [name for name, _ in answer] == [f"i{place}" for place in places.tolist()]
        assert [score for _, score in answer] == pytest.approx(best.tolist(), abs=1e-4)
    del made["layers.1.bias"]
    save_file(
        {f"user_tower.{name}": tensor for name, tensor in made.items()} | {"items.weight": vectors},
        folder / "model.safetensors",
    )
    with pytest.raises(ModelLoadError) as refused:
        recommender_for(folder, SETTINGS)
    assert refused.value.message == Naming(f"{folder} has no ", "user_tower.layers.1.bias")


def test_a_history_without_a_known_item_is_refused(tmp_path: Path) -> None:
    folder = build_recommender(tmp_path / "model")
    config = read_config(RecommenderConfig, (folder / "config.json").read_bytes())
    payload = RecommendPayload.model_validate({"input": {"history": [{"id": "nobody"}]}})
    with pytest.raises(InvalidRequest, match="the history"):
        query_of(payload, config, items_of(folder))


def test_a_folder_that_cannot_run_is_refused(tmp_path: Path) -> None:
    folder = build_recommender(tmp_path / "model")
    assert describe(folder).runner == "recommender"
    good = (folder / "items.jsonl").read_text()
    for text, words in [
        (good + '\n{"id": "i3"}', "an id twice"),
        (good + '\n{"id": "new", "attributes": {"colour": "red"}}', "line 201: colour"),
        (good + '\n{"id": "new", "attributes": {"price": "dear"}}', "line 201: price"),
        (good + "\nnonsense", "line 201"),
        ("", "no line"),
    ]:
        (folder / "items.jsonl").write_text(text)
        with pytest.raises(ModelLoadError, match=words):
            describe(folder)
    (folder / "items.jsonl").write_text(good + '\n{"id": "new"}')
    with pytest.raises(ModelLoadError, match=r"items\.weight has shape"):
        recommender_for(folder, SETTINGS)
    with pytest.raises(ModelLoadError) as refused:
        recommender_for(folder, SETTINGS, dtype="bfloat16")
    assert refused.value.message == Naming("float32", "--dtype")


def test_scores_that_are_not_finite_are_no_answer_and_spoil_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    folder = build_recommender(tmp_path / "model")
    settings = SETTINGS.model_copy(update={"torch_threads": 3})
    runner = recommender_for(folder, settings, dtype="float32")
    rows = [
        EncodeRow(f"{first}", (0,), RecommendQuery(vector=(first, *[1.0] * (DIMENSIONS - 1)), top_k=2))
        for first in (1.0, float("inf"), 2.0)
    ]
    assert [one is None for one in runner.run(rows)] == [False, True, False]
    assert threads == [3]
