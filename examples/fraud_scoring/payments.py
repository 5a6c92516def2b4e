"""Generates card payments, some of them fraud, by rules that are all here. No data of real people is in it.

A payment has a probability of fraud, by its amount against what is usual at that kind of merchant, the age of the
account, the hour, the country, whether the card was present, and two pairs of these together. The label is drawn from
that probability. So the best possible model is known: it has the probability itself.
"""

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from headrace.features.predict.task import FeatureValue

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
COUNTRIES: Final = {"ch": 60, "de": 15, "fr": 10, "it": 8, "gb": 4, "us": 3}
_RISKY_COUNTRIES: Final = {"gb": 0.5, "us": 0.9}
# The usual amount, and the share of all payments.
MERCHANTS: Final = {
    "groceries": (45.0, 40),
    "fuel": (60.0, 15),
    "restaurant": (55.0, 20),
    "travel": (400.0, 8),
    "electronics": (250.0, 10),
    "gift_cards": (80.0, 7),
}
_RISKY_MERCHANTS: Final = {"electronics": 0.6, "gift_cards": 1.6}


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment as a row of the model, whether it is fraud, and the probability that the label was drawn from."""

    row: dict[str, FeatureValue]
    is_fraud: bool
    probability: float


def payments(count: int, seed: int) -> list[Payment]:
    """Return payments in the order of time, over half a year. About one in forty is fraud."""
    rng = random.Random(seed)
    seconds = sorted(rng.uniform(0, 180 * 86_400) for _ in range(count))
    return [_payment(rng, START + timedelta(seconds=second)) for second in seconds]


def _payment(rng: random.Random, at: datetime) -> Payment:
    merchant = rng.choices(list(MERCHANTS), [share for _, share in MERCHANTS.values()])[0]
    country = rng.choices(list(COUNTRIES), list(COUNTRIES.values()))[0]
    amount = round(MERCHANTS[merchant][0] * rng.lognormvariate(0, 0.8), 2)
    account_days = int(rng.expovariate(1 / 900))
    is_present = rng.random() < 0.65
    surplus = math.log(amount / MERCHANTS[merchant][0])
    is_new = account_days < 60
    is_night = at.hour < 6
    score = -7.2 + 0.9 * surplus + _RISKY_MERCHANTS.get(merchant, 0.0) + _RISKY_COUNTRIES.get(country, 0.0)
    score += 1.2 * is_new + 1.0 * is_night + 1.4 * (not is_present)
    score += 1.5 * (is_new and surplus > 0.5) + 1.3 * (is_night and merchant == "gift_cards")
    probability = 1 / (1 + math.exp(-score))
    row: dict[str, FeatureValue] = {
        "amount": amount,
        "merchant": merchant,
        "country": country,
        "card_present": is_present,
        "at": at.isoformat(),
    }
    if rng.random() < 0.95:  # a few accounts came without their age
        row["account_days"] = account_days
    return Payment(row, rng.random() < probability, probability)
