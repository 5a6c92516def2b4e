"""Scores payments through a running Headrace: ``python -m examples.fraud_scoring.score``.

The address and the key are HEADRACE_API_URL and HEADRACE_API_KEY, as ``headrace up`` shows them.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from examples.fraud_scoring.payments import Payment
from examples.fraud_scoring.train import area_under_roc, divided
from headrace.client import Client

ROWS_A_JOB = 100


def predictions(client: Client, model: str, rows: Sequence[Any], *, explain: bool = False) -> list[dict[str, Any]]:
    """Return a prediction for each row. All jobs are submitted before the first one is waited for."""
    jobs = [
        client.submit(task="predict", model=model, input={"rows": rows[first : first + ROWS_A_JOB]}, explain=explain)
        for first in range(0, len(rows), ROWS_A_JOB)
    ]
    return [one for job in jobs for one in client.result(job["id"])["predictions"]]


def report(client: Client, model: str, known: Sequence[Payment]) -> str:
    """Score payments, and explain the one that is likeliest to be fraud. Returns what is worth reading."""
    scores = [one["score"] for one in predictions(client, model, [one.row for one in known])]
    worst = max(range(len(known)), key=lambda place: scores[place])
    (explained,) = predictions(client, model, [known[worst].row], explain=True)
    return (
        f"area under the ROC curve of {len(known)} payments {area_under_roc(scores, known):.3f}\n"
        f"the likeliest fraud: {json.dumps(known[worst].row)}\n{json.dumps(explained, indent=1)}\n"
    )


def main() -> None:
    """Print how good the served model is, and why one payment has its score."""
    parser = argparse.ArgumentParser(prog="python -m examples.fraud_scoring.score", description=__doc__)
    parser.add_argument("--model", default="fraud-model")
    parser.add_argument("--payments", type=int, default=40_000, help="as many as for the training")
    parser.add_argument("--seed", type=int, default=1, help="the same as for the training")
    options = parser.parse_args()
    _, later = divided(options.payments, options.seed)
    with Client(os.environ["HEADRACE_API_URL"], os.environ["HEADRACE_API_KEY"]) as client:
        sys.stdout.write(report(client, options.model, later))


if __name__ == "__main__":
    main()
