"""Predictions held to torch's own modules on each row alone, and explanations held to what they promise."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from headrace.features.predict.feature_schema import EncodedRows, encode_rows, read_config
from headrace.features.predict.inputs import TabularConfig
from headrace.features.predict.torch_tabular import TorchTabular, tabular_for
from headrace.models.engine.requests import EncodeRow
from headrace.models.families.model_folder import describe
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings
from tests.refusals import Naming

SETTINGS = Settings(device="cpu")
FEATURES: list[dict[str, Any]] = [
    {"name": "amount", "type": "number", "minimum": 0, "maximum": 10_000, "mean": 100, "scale": 50},
    {"name": "items", "type": "integer", "missing": "imputed", "impute": 2},
    {
        "name": "country",
        "type": "category",
        "categories": ["ch", "de"],
        "other": "embedded",
        "missing": "indicator",
        "dimensions": 3,
    },
    {"name": "is_new", "type": "boolean", "missing": "indicator"},
    {"name": "at", "type": "timestamp", "mean": 20_000, "scale": 365},
]
ROWS: list[dict[str, Any]] = [
    {"amount": 12.5, "items": 1, "country": "ch", "is_new": True, "at": "2026-11-28T12:30:00Z"},
    {"amount": 900, "items": 40, "country": "xx", "at": 1_700_000_000},
    {"amount": 0, "is_new": False, "at": "2020-02-29T23:59:59+01:00"},
]
_MORE: dict[str, dict[str, Any]] = {
    "binary": {"classes": ["legitimate", "fraud"], "hidden": [16, 8], "activation": "silu"},
    "multiclass": {"classes": ["a", "b", "c"], "hidden": [16], "activation": "relu"},
    "regression": {"target_mean": 5.0, "target_scale": 2.0},
}


def build_tabular(folder: Path, objective: str = "binary", **changes: object) -> Path:
    """Write a model with random weights. Without hidden layers it is linear."""
    folder.mkdir(parents=True)
    content = {"model_type": "headrace-tabular", "objective": objective, "features": FEATURES, **_MORE[objective]}
    (folder / "config.json").write_text(json.dumps(content | changes))
    config = config_of(folder)
    torch.manual_seed(3)
    tensors = {f"embeddings.{one.name}.weight": torch.randn(one.num_rows, one.dimensions) for one in config.categorical}
    widths = [config.num_columns + sum(one.dimensions for one in config.categorical), *config.hidden]
    for number, (width, into) in enumerate(zip(widths, [*config.hidden, config.num_outputs], strict=True)):
        tensors[f"layers.{number}.weight"] = torch.randn(into, width) * 0.3
        tensors[f"layers.{number}.bias"] = torch.randn(into) * 0.1
    save_file(tensors, folder / "model.safetensors")
    return folder


def config_of(folder: Path) -> TabularConfig:
    return read_config(TabularConfig, (folder / "config.json").read_bytes())


def reference(folder: Path, rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    """The outputs of torch's modules for each row alone, without the last function."""
    config, tensors = config_of(folder), _tensors(folder)
    act = {"relu": nn.ReLU(), "silu": nn.SiLU()}[config.activation]
    layers: list[nn.Module] = []
    for number in range(len(config.hidden) + 1):
        weight, bias = tensors[f"layers.{number}.weight"], tensors[f"layers.{number}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, act]
    net = nn.Sequential(*layers[:-1])
    table = nn.Embedding.from_pretrained(tensors["embeddings.country.weight"])
    found = []
    for row in rows:
        encoded = encode_rows(config, [row])
        chosen = table(torch.tensor(encoded.categories))[0]
        found.append(net(torch.cat([torch.tensor(encoded.numbers), chosen], 1)).detach()[0].tolist())
    return found


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file  # noqa: PLC0415

    return load_file(folder / "model.safetensors")


def run(runner: TorchTabular, *requests: EncodedRows) -> list[list[float]]:
    rows = [
        EncodeRow(str(number), (index,), request, index)
        for number, request in enumerate(requests)
        for index in range(len(request.numbers))
    ]
    return [torch.frombuffer(bytearray(one or b""), dtype=torch.float32).tolist() for one in runner.run(rows)]


@pytest.mark.parametrize("objective", _MORE)
def test_rows_of_several_requests_have_the_outputs_of_each_row_alone(objective: str, tmp_path: Path) -> None:
    folder = build_tabular(tmp_path / "model", objective)
    config = config_of(folder)
    logits = torch.tensor(reference(folder, ROWS))
    match objective:
        case "binary":
            expected = logits.sigmoid()
        case "multiclass":
            expected = logits.softmax(1)
        case _:
            expected = logits * 2 + 5
    runner = tabular_for(folder, SETTINGS)
    found = run(runner, encode_rows(config, ROWS[:1]), encode_rows(config, ROWS[1:]))
    assert torch.allclose(torch.tensor(found), expected, atol=1e-6)


@pytest.mark.parametrize("objective", _MORE)
def test_contributions_sum_to_the_score_minus_that_of_the_baseline(objective: str, tmp_path: Path) -> None:
    config = config_of(build_tabular(tmp_path / "model", objective))
    plain, explained = encode_rows(config, ROWS[:1]), encode_rows(config, ROWS, explain=True)
    first, *found = run(tabular_for(tmp_path / "model", SETTINGS), plain, explained)
    assert len(first) == config.num_outputs, "only who asks for it has an explanation"
    for vector in found:
        outputs, rest = vector[: config.num_outputs], vector[config.num_outputs :]
        *contributions, baseline, error = rest
        assert len(contributions) == len(FEATURES)
        assert sum(contributions) + error == pytest.approx(max(outputs) - baseline, abs=1e-5)
        assert abs(error) < 1e-3


def test_the_contributions_of_a_linear_model_are_weight_times_distance(tmp_path: Path) -> None:
    folder = build_tabular(tmp_path / "model", "regression")
    config = config_of(folder)
    (vector,) = run(tabular_for(folder, SETTINGS), encode_rows(config, ROWS[:1], explain=True))
    weight = _tensors(folder)["layers.0.weight"][0]
    amount, country = vector[1], vector[3]
    table = _tensors(folder)["embeddings.country.weight"]
    assert amount == pytest.approx(float(weight[0]) * (12.5 - 100) / 50 * 2, abs=1e-5)
    assert country == pytest.approx(float(weight[-3:] @ (table[0] - table.mean(0))) * 2, abs=1e-5)


def test_a_row_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    folder = build_tabular(tmp_path / "model")
    tensors = _tensors(folder)
    tensors["embeddings.country.weight"][2] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    rows = encode_rows(config_of(folder), ROWS)
    found = tabular_for(folder, SETTINGS).run([EncodeRow("a", (n,), rows, n) for n in range(len(ROWS))])
    assert [one is None for one in found] == [False, True, False]


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"classes": ["one"]}, "1 classes do not fit the objective binary"),
    ({"features": [FEATURES[0], FEATURES[0]]}, "two features have the same name"),
    ({"features": [FEATURES[0] | {"minimum": 5, "maximum": 4}]}, "amount do not fit each other"),
    ({"features": [{"name": "a", "type": "text"}]}, "features.0"),
    ({"features": [FEATURES[2] | {"impute": "fr"}]}, "`impute`"),
    ({"hidden": [0]}, "hidden.0"),
    ({"dropout": 0.1}, "dropout"),
]


def test_a_folder_that_cannot_run_is_refused_with_the_field(tmp_path: Path) -> None:
    folder = build_tabular(tmp_path / "model")
    assert describe(folder).runner == "tabular"
    good = json.loads((folder / "config.json").read_text())
    for change, words in FAULTS:
        (folder / "config.json").write_text(json.dumps(good | change))
        with pytest.raises(ModelLoadError, match=words):
            describe(folder)
    (folder / "config.json").write_text(json.dumps(good | {"hidden": [16, 9]}))
    with pytest.raises(ModelLoadError, match=r"layers\.1\.weight has shape"):
        tabular_for(folder, SETTINGS)
    with pytest.raises(ModelLoadError) as refused:
        tabular_for(folder, SETTINGS, dtype="bfloat16")
    assert refused.value.message == Naming("float32", "--dtype")
