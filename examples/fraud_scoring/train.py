"""Trains a fraud model and writes its folder: ``python -m examples.fraud_scoring.train FOLDER``.

The payments are divided by time: the model is trained on the first part and judged on the rest.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from examples.fraud_scoring.payments import COUNTRIES, MERCHANTS, Payment, payments
from headrace.features.predict.feature_schema import EncodedRows, encode_rows, read_config
from headrace.features.predict.inputs import MODEL_TYPE, TabularConfig
from headrace.features.predict.task import FeatureValue

TRAINED_SHARE = 0.8
BATCH = 1024
_DAY_S = 86_400


class FraudNetwork(nn.Module):
    """The network that Headrace runs; its tensors have the names of docs/tabular.md."""

    def __init__(self, config: TabularConfig) -> None:
        super().__init__()
        tables = {one.name: nn.Embedding(one.num_rows, one.dimensions) for one in config.categorical}
        self.embeddings = nn.ModuleDict(tables)
        width = config.num_columns + sum(one.dimensions for one in config.categorical)
        widths = [width, *config.hidden, config.num_outputs]
        self.layers = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))

    def forward(self, numbers: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of fraud, (rows,)."""
        parts = [table(categories[:, place]) for place, table in enumerate(self.embeddings.values())]
        hidden = torch.cat([numbers, *parts], dim=1)
        for number, layer in enumerate(self.layers):
            hidden = layer(nn.functional.silu(hidden) if number else hidden)
        return hidden[:, 0]


def configuration(rows: Sequence[dict[str, FeatureValue]]) -> dict[str, Any]:
    """Return the ``config.json``; means and scales are those of the training rows."""
    amounts = [cast(float, row["amount"]) for row in rows]
    ages = [cast(float, row["account_days"]) for row in rows if "account_days" in row]
    days = [datetime.fromisoformat(str(row["at"])).timestamp() / _DAY_S for row in rows]
    features: list[dict[str, Any]] = [
        {"name": "amount", "type": "number", "minimum": 0, "maximum": 1e6, **_standard(amounts)},
        {"name": "merchant", "type": "category", "categories": list(MERCHANTS), "other": "embedded", "dimensions": 4},
        {"name": "country", "type": "category", "categories": list(COUNTRIES), "other": "embedded", "dimensions": 4},
        {"name": "card_present", "type": "boolean"},
        {"name": "account_days", "type": "integer", "minimum": 0, "missing": "indicator", **_standard(ages)},
        {"name": "at", "type": "timestamp", **_standard(days)},
    ]
    return {
        "model_type": MODEL_TYPE,
        "objective": "binary",
        "classes": ["legitimate", "fraud"],
        "threshold": 0.5,
        "hidden": [32, 16],
        "activation": "silu",
        "features": features,
    }


def _standard(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "scale": statistics.pstdev(values) or 1.0}


def train(folder: Path, known: Sequence[Payment], *, epochs: int, seed: int) -> FraudNetwork:
    """Train on payments with labels and write the folder of the model."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(configuration([one.row for one in known]), indent=1).encode()
    config = read_config(TabularConfig, content)
    network = FraudNetwork(config)
    numbers, categories = tensors(encode_rows(config, [one.row for one in known]))
    labels = torch.tensor([float(one.is_fraud) for one in known])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * math.ceil(len(known) / BATCH))
    for _ in range(epochs):
        for some in torch.randperm(len(known)).split(BATCH):  # type: ignore[no-untyped-call]  # torch does not annotate it
            loss = nn.functional.binary_cross_entropy_with_logits(
                network(numbers[some], categories[some]), labels[some]
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimizer.step()
            schedule.step()
    (folder / "config.json").write_bytes(content)
    save_file(network.state_dict(), folder / "model.safetensors")
    return network


def tensors(rows: EncodedRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers and the categories of encoded rows."""
    return torch.tensor(rows.numbers), torch.tensor(rows.categories)


def area_under_roc(scores: Sequence[float], known: Sequence[Payment]) -> float:
    """Return the chance that a fraud has a higher score than a payment that is none."""
    order = sorted(range(len(known)), key=lambda place: scores[place])
    ranks = [rank for rank, place in enumerate(order, 1) if known[place].is_fraud]
    others = len(known) - len(ranks)
    return (sum(ranks) - len(ranks) * (len(ranks) + 1) / 2) / (len(ranks) * others)


def divided(count: int, seed: int) -> tuple[list[Payment], list[Payment]]:
    """Return the payments to train on, and the later ones to judge by."""
    found = payments(count, seed)
    return found[: int(count * TRAINED_SHARE)], found[int(count * TRAINED_SHARE) :]


def main() -> None:
    """Train, write the folder, and print how good the model is."""
    parser = argparse.ArgumentParser(prog="python -m examples.fraud_scoring.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the model's folder goes")
    parser.add_argument("--payments", type=int, default=40_000, help="how many payments to generate")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    first, later = divided(options.payments, options.seed)
    network = train(options.folder, first, epochs=options.epochs, seed=options.seed)
    config = read_config(TabularConfig, (options.folder / "config.json").read_bytes())
    with torch.no_grad():
        scores = network(*tensors(encode_rows(config, [one.row for one in later]))).tolist()
    sys.stdout.write(
        f"{options.folder}: area under the ROC curve of {len(later)} later payments "
        f"{area_under_roc(scores, later):.3f}; the generator's own probabilities "
        f"{area_under_roc([one.probability for one in later], later):.3f}\n"
    )


if __name__ == "__main__":
    main()
