"""The recommender on torch: users of several jobs in, one product with all items, the exact best items of each out.

The vector of a user has the number of its items, their places, and then their scores, all as float32, which holds every
whole number up to 16,777,216.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch.nn.functional import normalize

from headrace.features.predict.dense_network import DenseNetwork, read_network
from headrace.features.predict.feature_schema import read_config
from headrace.features.recommend.attribute_columns import AttributeColumns
from headrace.features.recommend.inputs import ITEMS_FILE, RecommenderConfig, RecommendQuery, Similarity
from headrace.features.recommend.items import Items, read_items
from headrace.features.recommend.task import MAX_TOP_K
from headrace.models.engine.requests import EncodeRow
from headrace.models.families.model_folder import small_files
from headrace.models.families.safetensors_reader import Weights
from headrace.models.runners.encoder import finite_bytes
from headrace.models.runners.torch_runner import translate_torch_errors
from headrace.models.tensors.precision import resolve_device
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings

NUMBER_FORMAT: Final = "float32"
_ITEMS: Final = "items.weight"


class TorchRecommender:
    """Finds the best items with one model. A request has one input, and its options are its ``RecommendQuery``."""

    context_window = MAX_TOP_K

    def __init__(
        self, config: RecommenderConfig, vectors: torch.Tensor, items: Items, tower: DenseNetwork | None
    ) -> None:
        self._is_cosine = config.similarity is Similarity.COSINE
        self._vectors = normalize(vectors, dim=1) if self._is_cosine else vectors
        self._columns = AttributeColumns(items, list(config.attributes))
        self._tower = tower

    @torch.inference_mode()
    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return for each row the places and scores of its items, the best first; None if a score is not finite."""
        with translate_torch_errors():
            users = torch.stack([self._user(row.options) for row in rows])
            scores = (normalize(users, dim=1) if self._is_cosine else users) @ self._vectors.T
            best = [self._best(row.options, found) for row, found in zip(rows, scores, strict=True)]
            return finite_bytes(best, scores)

    def _user(self, query: RecommendQuery) -> torch.Tensor:
        if query.vector is not None:
            return self._vectors.new_tensor(query.vector)
        if query.row is not None and self._tower is not None:
            numbers, categories = query.row
            return self._tower.last(self._tower.inputs([numbers], [categories]))[0]
        weights = self._vectors.new_tensor(query.weights)
        return (weights[:, None] * self._vectors[list(query.history)]).sum(0) / weights.sum()

    def _best(self, query: RecommendQuery, scores: torch.Tensor) -> torch.Tensor:
        allowed = self._allowed(query, scores.device)
        best, places = (scores if allowed is None else scores[allowed]).sort(descending=True, stable=True)
        best, places = best[: query.top_k], places[: query.top_k]
        chosen = places if allowed is None else allowed[places]
        return torch.cat([best.new_tensor([len(best)]), chosen.float(), best])

    def _allowed(self, query: RecommendQuery, device: torch.device) -> torch.Tensor | None:
        """Return the places of the items that the filter lets through, None for all."""
        if query.only is None and not query.without and not query.where:
            return None
        mask = torch.full((len(self._vectors),), query.only is None)
        mask[list(query.only or ())] = True
        mask[list(query.without)] = False
        for condition in query.where:
            mask &= self._columns.matching(condition)
        return mask.nonzero()[:, 0].to(device)


def recommender_for(folder: Path, settings: Settings, *, dtype: str = "auto") -> TorchRecommender:
    """Return the runner of a model folder. Raises ModelLoadError for weights or a number format that cannot run."""
    if dtype not in ("auto", NUMBER_FORMAT):
        raise ModelLoadError(f"a recommender runs in {NUMBER_FORMAT}: register it without --dtype")
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    files = small_files(folder)
    config = read_config(RecommenderConfig, files["config.json"])
    items = read_items(files[ITEMS_FILE], config.attributes)
    device = resolve_device(settings.device)
    with Weights(folder) as weights:
        vectors = weights.get(_ITEMS, (len(items.items), config.dimensions)).float().to(device, copy=True)
        tower = config.user_tower
        network = None if tower is None else read_network(weights, tower, config.dimensions, "user_tower.").to(device)
    return TorchRecommender(config, vectors, items, network)
