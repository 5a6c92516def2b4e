"""The tabular model on torch: rows of several jobs in, one pass, the outputs of each row out.

The vector of a row has the outputs of the network. With ``explain`` follow the contribution of each feature, the score
of the baseline, and the error of the integration.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from models.engine.requests import EncodeRow
from models.families.model_folder import small_files
from models.runners.encoder import float32_bytes
from models.runners.integrated_gradients import integrated_gradients
from models.runners.tabular_network import TabularNetwork, read_network
from models.runners.torch_runner import translate_torch_errors
from models.tensors.precision import resolve_device
from prompts.feature_schema import read_config
from prompts.tasks.predict import TabularConfig
from store.errors import ModelLoadError
from store.settings import Settings
from store.tasks.predict import MAX_ROWS

NUMBER_FORMAT: Final = "float32"


class TorchTabular:
    """Computes predictions with one model. A request's options are its ``EncodedRows``; an input is a row's number."""

    context_window = MAX_ROWS

    def __init__(self, network: TabularNetwork) -> None:
        self._network = network
        self._spans = [list(span) for span in network.config.spans()]
        self._exact = network.to(torch.float64)

    @torch.no_grad()
    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return the vector of each row as little-endian float32, None where it is not finite."""
        with translate_torch_errors():
            numbers = [row.options.numbers[row.index] for row in rows]
            categories = [row.options.categories[row.index] for row in rows]
            outputs = self._network.outputs(self._network.inputs(numbers, categories)).cpu()
            explained = [place for place, row in enumerate(rows) if row.options.explain]
            more: dict[int, torch.Tensor] = {}
            if explained:
                found = self._explained([numbers[one] for one in explained], [categories[one] for one in explained])
                more = dict(zip(explained, found, strict=True))
            finite = outputs.isfinite().all(1).tolist()
            vectors = (
                torch.cat([vector, more[place]]) if place in more else vector for place, vector in enumerate(outputs)
            )
            return [
                float32_bytes(vector) if is_finite else None for vector, is_finite in zip(vectors, finite, strict=True)
            ]

    def _explained(self, numbers: Sequence[Sequence[float]], categories: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return (rows, features + 2): the contributions, the score of the baseline, and the error of their sum."""
        exact = self._exact
        inputs, baseline = exact.inputs(numbers, categories), exact.baseline()
        outputs = exact.outputs(inputs)
        chosen = outputs.argmax(1)
        of_inputs = integrated_gradients(exact.outputs, inputs, baseline, chosen, scale=exact.config.target_scale)
        of_features = torch.stack([of_inputs[:, span].sum(1) for span in self._spans], dim=1)
        start = exact.outputs(baseline[None])[0][chosen]
        error = outputs.gather(1, chosen[:, None])[:, 0] - start - of_features.sum(1)
        return torch.cat([of_features, start[:, None], error[:, None]], dim=1).float().cpu()


def tabular_for(folder: Path, settings: Settings, *, dtype: str = "auto") -> TorchTabular:
    """Return the runner of a model folder. Raises ModelLoadError for weights or a number format that cannot run."""
    if dtype not in ("auto", NUMBER_FORMAT):
        raise ModelLoadError(f"a tabular model runs in {NUMBER_FORMAT}: register it without --dtype")
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    config = read_config(TabularConfig, small_files(folder)["config.json"])
    return TorchTabular(read_network(folder, config).to(resolve_device(settings.device)))
