"""The work of the task ``recommend``: the best items for a user."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from headrace.features.recommend.fake_recommender import FakeRecommender
from headrace.features.recommend.inputs import RecommenderConfig, config_for, items_for, query_of
from headrace.features.recommend.items import Items
from headrace.features.recommend.task import RECOMMEND, RecommendedItem, RecommendOutput, RecommendPayload
from headrace.models.engine.runner import Encoder
from headrace.models.loading.load import checked_folder, with_encoder_faults
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.payloads.job_payload import read_payload
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel
from headrace.workers.tasks.task_model import ModelPart


@dataclass(frozen=True, slots=True)
class RecommendModel(EncoderModel):
    """A recommender with its items."""

    config: RecommenderConfig
    items: Items

    @property
    def example(self) -> Mapping[str, Any]:
        """A user of one item, or of typical features if the model has a user tower."""
        tower = self.config.user_tower
        user = {"history": [{"id": self.items.items[0].id}]} if tower is None else {"features": tower.example}
        return {"input": user}

    def read(self, payload: Mapping[str, Any]) -> EncodeJob:
        """Return the job's user as one input of one token; the options are its ``RecommendQuery``."""
        asked = read_payload(RecommendPayload, payload)
        unknown = tuple(one.id for one in asked.input.history or () if one.id not in self.items.places)
        return EncodeJob(((0,),), query_of(asked, self.config, self.items), partial(_output, self.items, unknown))


def load_recommend_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> RecommendModel:
    """Load a recommender."""
    encoder = with_encoder_faults(_load(version, settings), settings, lambda _row: "")
    config = config_for(version, read_file)
    return RecommendModel(version, encoder, config, items_for(version, config, read_file))


def _load(version: ModelVersion, settings: Settings) -> Encoder:
    if version.is_fake:
        return FakeRecommender(step_s=settings.fake_step_ms / 1000)
    folder = checked_folder(version)
    from headrace.features.recommend.torch_recommender import recommender_for  # noqa: PLC0415 - a worker of a fake has no torch

    return recommender_for(folder, settings, dtype=version.dtype)


def _output(items: Items, unknown: tuple[str, ...], vectors: Sequence[bytes]) -> dict[str, Any]:
    (vector,) = vectors
    count, *rest = struct.unpack(f"<{len(vector) // 4}f", vector)
    found = [
        (items.items[int(place)], score) for place, score in zip(rest[: int(count)], rest[int(count) :], strict=True)
    ]
    best = tuple(RecommendedItem(id=item.id, score=score, attributes=item.attributes) for item, score in found)
    return RecommendOutput(items=best, unknown_ids=unknown).model_dump(mode="json")


PART = ModelPart(RECOMMEND, load_recommend_model)
