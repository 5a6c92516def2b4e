"""Generates the items of a shop and the clicks of its users, by rules that are all here.

A user likes two categories: one by the region, one by the age. A click is on an item of these in four cases of five,
and dear items are clicked less. So the features of a user say something about the next click, and not all.
"""

import random
from dataclasses import dataclass
from typing import Any, Final

CATEGORIES: Final = ("boats", "books", "bread", "games", "garden", "lamps", "music", "shoes", "tea", "tools")
REGIONS: Final = ("north", "east", "south", "west")
_FAVOURITE_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Visit:
    """The features of a user, and the numbers of the items that the user clicked, the oldest first."""

    features: dict[str, Any]
    clicks: list[int]


def items(count: int, seed: int) -> list[dict[str, Any]]:
    """Return items as lines of ``items.jsonl``."""
    rng = random.Random(seed)
    return [
        {
            "id": f"item-{number}",
            "attributes": {
                "category": CATEGORIES[number % len(CATEGORIES)],
                "price": round(rng.lognormvariate(3, 0.7), 2),
                "in_stock": rng.random() < 0.9,
            },
        }
        for number in range(count)
    ]


def visits(count: int, shop: list[dict[str, Any]], seed: int) -> list[Visit]:
    """Return visits of six clicks each."""
    rng = random.Random(seed)
    liked = [1 / (1 + one["attributes"]["price"] / 40) for one in shop]
    by_category = {
        name: [number for number, one in enumerate(shop) if one["attributes"]["category"] == name]
        for name in CATEGORIES
    }
    everything = list(range(len(shop)))
    found = []
    for _ in range(count):
        age, region = rng.randrange(16, 80), rng.choice(REGIONS)
        favourites = CATEGORIES[REGIONS.index(region)], CATEGORIES[4 + (age - 16) // 11]
        clicks = []
        for _ in range(6):
            among = by_category[rng.choice(favourites)] if rng.random() < _FAVOURITE_SHARE else everything
            clicks.append(rng.choices(among, [liked[number] for number in among])[0])
        found.append(Visit({"age": age, "region": region}, clicks))
    return found
