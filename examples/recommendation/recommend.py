"""Recommends through a running Headrace: ``python -m examples.recommendation.recommend``.

The address and the key are HEADRACE_API_URL and HEADRACE_API_KEY, as ``headrace up`` shows them.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from examples.recommendation.shop import Visit, items, visits
from examples.recommendation.train import TOP_K, hit_rate
from headrace.client import Client


def recommended(client: Client, model: str, judged: Sequence[Visit]) -> list[list[int]]:
    """Return the numbers of the best items for the features of each visit."""
    jobs = [
        client.submit(task="recommend", model=model, input={"features": visit.features}, top_k=TOP_K)
        for visit in judged
    ]
    return [[int(one["id"].partition("-")[2]) for one in client.result(job["id"])["items"]] for job in jobs]


def report(client: Client, model: str, judged: Sequence[Visit]) -> str:
    """Judge the served model, and recommend by a history with a filter. Returns what is worth reading."""
    history = [{"id": f"item-{click}"} for click in judged[0].clicks[:-1]]
    where = [{"attribute": "in_stock", "one_of": [True]}, {"attribute": "price", "maximum": 20}]
    body: dict[str, Any] = {"model": model, "history": history, "filter": {"where": where}, "top_k": 3}
    answer = client.request("POST", "/v1/recommendations", json=body)
    return (
        f"the last click of {len(judged)} visits is among the {TOP_K} best items in "
        f"{hit_rate(recommended(client, model, judged), judged):.3f}\n"
        f"by a history, in stock and up to 20: {json.dumps(answer['items'], indent=1)}\n"
    )


def main() -> None:
    """Print how good the served model is, and what it recommends to one user."""
    parser = argparse.ArgumentParser(prog="python -m examples.recommendation.recommend", description=__doc__)
    parser.add_argument("--model", default="shop-model")
    parser.add_argument("--items", type=int, default=300, help="as many as for the training")
    parser.add_argument("--seed", type=int, default=1, help="the same as for the training")
    options = parser.parse_args()
    judged = visits(300, items(options.items, options.seed), options.seed + 1)
    with Client(os.environ["HEADRACE_API_URL"], os.environ["HEADRACE_API_KEY"]) as client:
        sys.stdout.write(report(client, options.model, judged))


if __name__ == "__main__":
    main()
