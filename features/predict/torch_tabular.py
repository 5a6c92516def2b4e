"""The tabular model on torch: rows of several jobs in, one pass, the outputs of each row out.

The vector of a row has the outputs of the network. With ``explain`` follow the contribution of each feature, the score
of the baseline, and the error of the integration.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from headrace.features.predict.dense_network import DenseNetwork, read_network
from headrace.features.predict.feature_schema import read_config
from headrace.features.predict.inputs import Objective, TabularConfig
from headrace.features.predict.integrated_gradients import integrated_gradients
from headrace.features.predict.task import MAX_ROWS
from headrace.models.engine.requests import EncodeRow
from headrace.models.families.model_folder import small_files
from headrace.models.families.safetensors_reader import Weights
from headrace.models.runners.encoder import finite_bytes
from headrace.models.runners.torch_runner import translate_torch_errors
from headrace.models.tensors.precision import resolve_device
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings

NUMBER_FORMAT: Final = "float32"


class TorchTabular:
    """Computes predictions with one model. A request's options are its ``EncodedRows``; an input is a row's number."""

    context_window = MAX_ROWS

    def __init__(self, config: TabularConfig, network: DenseNetwork) -> None:
        self._config = config
        self._network = network
        self._spans = [list(span) for span in config.spans()]
        self._exact = network.to(torch.float64)

    @torch.no_grad()
    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return the vector of each row as little-endian float32.

        None where it is not finite, or an output of the network.
        """
        with translate_torch_errors():
            numbers = [row.options.numbers[row.index] for row in rows]
            categories = [row.options.categories[row.index] for row in rows]
            last = self._network.last(self._network.inputs(numbers, categories)).cpu()
            outputs = outputs_of(self._config, last)
            explained = [place for place, row in enumerate(rows) if row.options.explain]
            more: dict[int, torch.Tensor] = {}
            if explained:
                found = self._explained([numbers[one] for one in explained], [categories[one] for one in explained])
                more = dict(zip(explained, found, strict=True))
            vectors = (
                torch.cat([vector, more[place]]) if place in more else vector for place, vector in enumerate(outputs)
            )
            return finite_bytes(vectors, last)

    def _explained(self, numbers: Sequence[Sequence[float]], categories: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return (rows, features + 2): the contributions, the score of the baseline, and the error of their sum."""
        exact, config = self._exact, self._config

        def function(inputs: torch.Tensor) -> torch.Tensor:
            return outputs_of(config, exact.last(inputs))

        inputs, baseline = exact.inputs(numbers, categories), exact.baseline()
        outputs = function(inputs)
        chosen = outputs.argmax(1)
        of_inputs = integrated_gradients(function, inputs, baseline, chosen, scale=config.target_scale)
        of_features = torch.stack([of_inputs[:, span].sum(1) for span in self._spans], dim=1)
        start = function(baseline[None])[0][chosen]
        error = outputs.gather(1, chosen[:, None])[:, 0] - start - of_features.sum(1)
        return torch.cat([of_features, start[:, None], error[:, None]], dim=1).float().cpu()


def outputs_of(config: TabularConfig, last: torch.Tensor) -> torch.Tensor:
    """Return for each row the probability of the second class, those of all classes, or the number."""
    match config.objective:
        case Objective.BINARY:
            return last.sigmoid()
        case Objective.MULTICLASS:
            return last.softmax(1)
        case Objective.REGRESSION:
            return last * config.target_scale + config.target_mean


def tabular_for(folder: Path, settings: Settings, *, dtype: str = "auto") -> TorchTabular:
    """Return the runner of a model folder. Raises ModelLoadError for weights or a number format that cannot run."""
    if dtype not in ("auto", NUMBER_FORMAT):
        raise ModelLoadError(f"a tabular model runs in {NUMBER_FORMAT}: register it without --dtype")
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    config = read_config(TabularConfig, small_files(folder)["config.json"])
    with Weights(folder) as weights:
        network = read_network(weights, config, config.num_outputs)
    return TorchTabular(config, network.to(resolve_device(settings.device)))
