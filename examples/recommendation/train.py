"""Trains two towers for a shop and writes the folder: ``python -m examples.recommendation.train FOLDER``.

One tower makes a vector of a user's features, the other one has a vector for each item; a click says that the two
should be near. The last click of each user is held back, to judge by.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from examples.recommendation.shop import REGIONS, Visit, items, visits
from headrace.features.predict.feature_schema import encode_rows, read_config
from headrace.features.recommend.inputs import ITEMS_FILE, MODEL_TYPE, RecommenderConfig, UserTower

DIMENSIONS = 16
TOP_K = 10
BATCH = 512

CONFIG: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "dimensions": DIMENSIONS,
    "similarity": "dot",
    "attributes": {"category": "text", "price": "number", "in_stock": "boolean"},
    "user_tower": {
        "hidden": [32],
        "activation": "silu",
        "features": [
            {"name": "age", "type": "integer", "minimum": 0, "maximum": 130, "mean": 48, "scale": 18},
            {
                "name": "region",
                "type": "category",
                "categories": list(REGIONS),
                "other": "embedded",
                "missing": "indicator",
                "dimensions": 4,
            },
        ],
    },
}


class TwoTowers(nn.Module):
    """The tensors have the names of docs/recommendation.md."""

    def __init__(self, tower: UserTower, num_items: int) -> None:
        super().__init__()
        (region,) = tower.categorical
        width = tower.num_columns + region.dimensions
        self.items = nn.Embedding(num_items, DIMENSIONS)
        self.user_tower = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict({region.name: nn.Embedding(region.num_rows, region.dimensions)}),
                "layers": nn.ModuleList([nn.Linear(width, tower.hidden[0]), nn.Linear(tower.hidden[0], DIMENSIONS)]),
            }
        )

    def users(self, numbers: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        """Return the vectors of users, (rows, DIMENSIONS)."""
        state = dict(self.user_tower.named_parameters())
        table, layers = state["embeddings.region.weight"], self.user_tower["layers"]
        first, second = layers.children()
        hidden = first(torch.cat([numbers, table[categories[:, 0]]], 1))
        found: torch.Tensor = second(nn.functional.silu(hidden))
        return found


def train(folder: Path, shop: Sequence[dict[str, Any]], known: Sequence[Visit], *, epochs: int, seed: int) -> None:
    """Train on all clicks but the last one of each visit, and write the folder of the model."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(CONFIG, indent=1).encode()
    tower = read_config(RecommenderConfig, content).user_tower
    if tower is None:
        raise ValueError("the example has a user tower")
    network = TwoTowers(tower, len(shop))
    pairs = [(visit.features, click) for visit in known for click in visit.clicks[:-1]]
    rows = encode_rows(tower, [features for features, _ in pairs])
    numbers, categories = torch.tensor(rows.numbers), torch.tensor(rows.categories)
    clicked = torch.tensor([click for _, click in pairs])
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-2, weight_decay=1e-3)
    for _ in range(epochs):
        order = torch.randperm(len(pairs))
        for first in range(0, len(pairs), BATCH):
            some = order[first : first + BATCH]
            scores = network.users(numbers[some], categories[some]) @ network.items.weight.T
            loss = nn.functional.cross_entropy(scores, clicked[some])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimizer.step()
    (folder / "config.json").write_bytes(content)
    (folder / ITEMS_FILE).write_text("".join(json.dumps(one) + "\n" for one in shop))
    save_file(network.state_dict(), folder / "model.safetensors")


def hit_rate(recommended: Sequence[Sequence[int]], judged: Sequence[Visit]) -> float:
    """Return the share of visits whose last click is among the recommended items."""
    hits = sum(visit.clicks[-1] in best for visit, best in zip(judged, recommended, strict=True))
    return hits / len(judged)


def most_clicked(known: Sequence[Visit]) -> list[int]:
    """Return the items that a shop without a model would show to everyone."""
    counts = Counter(click for visit in known for click in visit.clicks[:-1])
    return [number for number, _ in counts.most_common(TOP_K)]


def main() -> None:
    """Train, write the folder, and print what the same items for everyone would hit."""
    parser = argparse.ArgumentParser(prog="python -m examples.recommendation.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the model's folder goes")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--visits", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    shop = items(options.items, options.seed)
    known = visits(options.visits, shop, options.seed)
    train(options.folder, shop, known, epochs=options.epochs, seed=options.seed)
    everyone = hit_rate([most_clicked(known)] * len(known), known)
    sys.stdout.write(f"{options.folder}: {len(known)} visits; the most clicked items for everyone hit {everyone:.3f}\n")


if __name__ == "__main__":
    main()
