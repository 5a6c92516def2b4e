"""``python -m benchmarks.policy_guard``: what the guards cost by themselves, without a server or a model.

Streams: answers of several languages and forms come in pieces of a token's size, with policies that hold back from
nothing to everything that is recognised. It reports the characters that are held back, how many pieces late the first
text is and a character on average, and the CPU time of a piece: cold, when RE2 meets a text of the kind for the first
time in a process, and warm. Multiply pieces by the model's time between tokens to have the added latency.
Scans: CPU time of each recogniser for 1,000 characters of input, and for one and four times 250 kB, which shows whether
it grows with the text. Prints tables and, as its last line, JSON.
"""

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.policy import POLICIES
from headrace.policy.budget import Budget, output_budget
from headrace.policy.documents import PolicyDocument
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy
from headrace.policy.recognisers.catalogue import RECOGNISERS
from headrace.policy.scanning import Scanner
from headrace.policy.streaming import GuardedText

console = Console(stderr=True)
PIECE_CHARS = 4
TEXTS: Mapping[str, str] = {
    "English": "The mill stands by the river, and its wheel has turned since 1742. Visit it from 9:30 to 17:00. ",
    "German": "Die Mühle steht am Fluss, und ihr Rad dreht sich seit 1742. Besuch von 9:30 bis 17:00 Uhr. ",
    "Russian": "Мельница стоит у реки, и её колесо вращается с 1742 года. Её можно посетить с 9:30 до 17:00. ",
    "Chinese": "磨坊位于河边，水轮自1742年以来一直在转动。参观时间为9:30至17:00。门票价格为12元。",
    "code": "def mill(river: River) -> int:\n    return sum(wheel.turns for wheel in river.wheels[1:42]) * 60\n",
    "JSON": '{"mill": {"river": "Elz", "since": 1742, "visits": [1200, 1310, 1499], "open": true}, "id": "a81f"}, ',
    "with data": "Write to ann.miller@example.com or call +49 30 901820; card 4526 0181 5908 3012, from 10.1.2.3. ",
}


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a policy did to one text: characters, pieces, and microseconds of CPU."""

    held_mean: float
    held_most: int
    first_late: int
    late_mean: float
    cpu_us: float


def streamed(policy: Policy, text: str) -> Streamed:
    """Send a text through a policy in pieces."""
    stream = GuardedText(policy.output, PlaceholderMap(), budget=output_budget())
    held, late, first = [], [], None
    num_left, start = 0, time.process_time()
    pieces = [text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS)]
    for number, piece in enumerate(pieces):
        said = stream.feed(piece)
        held.append(stream.num_held)
        if said and first is None:
            first = number
        # Redaction changes lengths a little; text that came and is not held has left.
        left = (number + 1) * PIECE_CHARS - stream.num_held
        late += [number - at // PIECE_CHARS for at in range(num_left, left)]
        num_left = max(num_left, left)
    stream.finish()
    cpu_us = (time.process_time() - start) / len(pieces) * 1e6
    return Streamed(statistics.mean(held), max(held), first or 0, statistics.mean(late), cpu_us)


def _streams() -> dict[str, Any]:
    table = Table("policy", "text", "held, mean", "most", "first, pieces late", "mean", "CPU cold, µs", "warm")
    rows: dict[str, Any] = {}
    for name, rules in POLICIES.items():
        for kind, text in TEXTS.items():
            policy = Policy(PolicyDocument.model_validate({"rules": rules}))
            policy.output.look("", 0)
            cold, warm = streamed(policy, text * 5), streamed(policy, text * 5)
            figures = [warm.held_mean, warm.held_most, warm.first_late, warm.late_mean, cold.cpu_us, warm.cpu_us]
            rows[f"{name}, {kind}"] = [round(figure, 2) for figure in figures]
            table.add_row(name, kind, *(f"{figure:.1f}" for figure in figures))
    console.print(table)
    return rows


def _scan_us(scanners: Sequence[Scanner], text: str) -> float:
    start = time.process_time()
    for scanner in scanners:
        scanner.find(text, 0, {}, Budget(600))
    return (time.process_time() - start) * 1e6


def _scans() -> dict[str, Any]:
    prose = "".join(text for kind, text in TEXTS.items() if kind != "with data")
    rows: dict[str, Any] = {}
    groups = {name: [one for one in RECOGNISERS if one.kind == name] for name in {one.kind for one in RECOGNISERS}}
    table = Table("recogniser", "µs for 1,000 characters", "with data", "four times 250 kB / 250 kB")
    for kind, recognisers in [*sorted(groups.items()), ("all together", list(RECOGNISERS))]:
        scanner = [Scanner(recognisers)]
        texts = [(text * (1000 // len(text) + 1))[:1000] for text in (prose, TEXTS["with data"])]
        warm = [statistics.median(_scan_us(scanner, text) for _ in range(9)) for text in texts]
        quarter = (prose * (250_000 // len(prose)))[:250_000]
        ratio = _scan_us(scanner, quarter * 4) / _scan_us(scanner, quarter)
        rows[str(kind)] = [round(figure, 1) for figure in (*warm, ratio)]
        table.add_row(str(kind), *(f"{figure:.1f}" for figure in (*warm, ratio)))
    console.print(table)
    return rows


def main() -> None:
    """Measure and print."""
    found = {"benchmark": "policy_guard", "cpus": os.cpu_count(), "streams": _streams(), "scans": _scans()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
