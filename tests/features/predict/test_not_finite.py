"""A row with NaN or infinity in the output has no answer, and spoils no other."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.features.predict.feature_schema import encode_rows
from headrace.features.predict.torch_tabular import tabular_for
from headrace.models.engine.requests import EncodeRow
from tests.features.predict.test_torch_tabular import ROWS, build_tabular, config_of
from tests.models.runners.test_not_finite import SETTINGS, answered


@pytest.mark.parametrize("objective", ["binary", "multiclass", "regression"])
def test_a_tabular_model(objective: str, tmp_path: Path) -> None:
    folder = build_tabular(tmp_path / "model", objective, hidden=[])
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.country.weight"][2] = torch.inf
    tensors["layers.0.weight"] = tensors["layers.0.weight"].abs()
    save_file(tensors, folder / "model.safetensors")
    runner = tabular_for(folder, SETTINGS)
    for explain, expected in ((False, [True, False, True]), (True, [False] * 3)):  # the baseline is a mean
        asked = encode_rows(config_of(folder), ROWS, explain=explain)
        assert answered(runner, [EncodeRow("a", (n,), asked, n) for n in range(3)]) == expected
