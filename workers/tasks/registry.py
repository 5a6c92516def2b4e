"""How each task's models are loaded. A new task is one more entry of ``MODEL_LOADERS``."""

from collections.abc import Mapping
from functools import partial

from store.registry.models import ModelVersion
from store.tasks.call_tool import CALL_TOOL
from store.tasks.classify import CLASSIFY
from store.tasks.embed import EMBED
from store.tasks.generate import GENERATE
from store.tasks.image_classify import IMAGE_CLASSIFY
from store.tasks.predict import PREDICT
from store.tasks.recommend import RECOMMEND
from store.tasks.registry import OWN_TASKS, known_task
from store.tasks.rerank import RERANK
from store.tasks.token_classify import TOKEN_CLASSIFY
from store.tasks.transcribe import TRANSCRIBE
from workers.tasks.call_tool import load_tool_model
from workers.tasks.classify import load_classify_model
from workers.tasks.embed import load_embed_model
from workers.tasks.generate import load_generate_model
from workers.tasks.image_classify import load_image_classify_model
from workers.tasks.own_task import load_own_model
from workers.tasks.predict import load_predict_model
from workers.tasks.recommend import load_recommend_model
from workers.tasks.rerank import load_rerank_model
from workers.tasks.task_model import LoadModel
from workers.tasks.token_classify import load_token_classify_model
from workers.tasks.transcribe import load_transcribe_model

MODEL_LOADERS: Mapping[str, LoadModel] = {
    GENERATE.name: load_generate_model,
    EMBED.name: load_embed_model,
    RERANK.name: load_rerank_model,
    PREDICT.name: load_predict_model,
    RECOMMEND.name: load_recommend_model,
    CLASSIFY.name: load_classify_model,
    IMAGE_CLASSIFY.name: load_image_classify_model,
    TOKEN_CLASSIFY.name: load_token_classify_model,
    TRANSCRIBE.name: load_transcribe_model,
    **{task.name: partial(load_own_model, task) for task in OWN_TASKS},
    CALL_TOOL.name: partial(load_tool_model, CALL_TOOL),
}


def loader_of(version: ModelVersion) -> LoadModel:
    """Return what loads a version. Raises CannotLoadHere if the package of its task is not installed here."""
    return MODEL_LOADERS[known_task(version.task).name]
