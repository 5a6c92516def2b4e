"""How each task's models are loaded. A new task is one more entry of ``MODEL_LOADERS``."""

from collections.abc import Mapping

from store.tasks.embed import EMBED
from store.tasks.generate import GENERATE
from store.tasks.predict import PREDICT
from store.tasks.rerank import RERANK
from workers.tasks.embed import load_embed_model
from workers.tasks.generate import load_generate_model
from workers.tasks.predict import load_predict_model
from workers.tasks.rerank import load_rerank_model
from workers.tasks.task_model import LoadModel

MODEL_LOADERS: Mapping[str, LoadModel] = {
    GENERATE.name: load_generate_model,
    EMBED.name: load_embed_model,
    RERANK.name: load_rerank_model,
    PREDICT.name: load_predict_model,
}
