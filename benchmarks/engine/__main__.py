"""``make bench-engine``: our engine and the whole queue path beside the engines that people use instead.

Each contestant is a process of its own, most in an environment of their own, and all compute the same token ids in
turn: the workloads at t = 0, then Poisson arrivals of rising load. Prints tables, writes a drawing of throughput
against TTFT, and prints one JSON object as its last line. ``--goal NAME`` measures one goal instead and exits 1 if it
is missed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.engine.contestants import CONTESTANTS, REFERENCE
from benchmarks.engine.goals import GOALS
from benchmarks.engine.plot import Point, svg
from benchmarks.engine.report import Found, draw, rows, summary
from benchmarks.engine.turns import OPEN_LOOP, Field, Quiet
from benchmarks.engine.workloads import SHAPES, Shape
from headrace.models.catalog import fetch
from headrace.models.families.model_folder import small_files
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.settings import load_settings

MODEL = "smollm2"
OURS = "headrace-bf16"
_TABLE_CHARS = 170

console = Console(stderr=True, log_path=False)
if not console.is_terminal:
    console.width = _TABLE_CHARS


def main() -> None:
    args = _arguments()
    folder = fetch(MODEL, load_settings().home / "models").absolute()
    tokenizer = load_tokenizer(small_files(folder))
    quiet = Quiet(args.quiet_s, args.tries)
    field = Field(folder, lambda text: tokenizer.encode(text, add_special=False), args.seed, console.log, quiet)
    if args.goal:
        sys.exit(_judge(field, args))
    began = time.monotonic()
    wanted = [each for each in CONTESTANTS if each.name in args.contestants]
    with field.running(wanted):
        for name in args.workloads:
            for slots in args.slots:
                field.rounds(wanted, name, _shape(name, args), slots, args.rounds)
        if args.loads:
            field.rising_load(wanted, _shape("mixed", args), max(args.slots), args.loads, args.load_s)
    quality = field.agreements(wanted, REFERENCE, args.quality) if args.quality else {}
    found = summary(rows(field.turns, OURS), wanted, field.refusals, field.ready, quality, vars(args))
    found["duration_s"] = round(time.monotonic() - began, 1)
    draw(console, found, markdown=args.markdown)
    if args.loads:
        _write_plot(found, args.plot)
    print(json.dumps(found))


def _judge(field: Field, args: argparse.Namespace) -> int:
    verdicts = GOALS[args.goal](field, args.rounds)
    for each in verdicts:
        console.print(f"{'reached' if each.is_reached else 'missed'}: {each.sentence}", markup=False)
    for name, why in field.refusals.items():
        console.print(f"{name} is absent: {why}", markup=False)
    print(json.dumps({"benchmark": "engine", "goal": args.goal, "verdicts": [vars(each) for each in verdicts]}))
    return 0 if verdicts and all(each.is_reached for each in verdicts) else 1


def _shape(name: str, args: argparse.Namespace) -> Shape:
    if name != "mixed":
        return SHAPES[name]
    return Shape(args.requests, tuple(args.prompt), tuple(args.output))


def _write_plot(found: Found, path: Path) -> None:
    lines: dict[str, list[Point]] = {}
    for row in found["rows"]:
        if row["workload"] == OPEN_LOOP:
            who = found["contestants"][row["contestant"]]
            point = Point(row["tokens_per_s"], row["ttft_mean_s"])
            lines.setdefault(f"{who['what']}, {who['dtype']}", []).append(point)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(svg(f"Poisson arrivals of rising load, {found['date']}, {found['machine']['cpu']}", lines))
    console.log(f"drawn in {path}")


def _arguments() -> argparse.Namespace:
    names = [each.name for each in CONTESTANTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--contestants", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--workloads", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--slots", type=int, nargs="+", default=[64], help="requests that run together at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--requests", type=int, default=64, help="of the mixed workload")
    parser.add_argument("--prompt", type=int, nargs=2, default=[16, 512], help="least and most tokens, mixed workload")
    parser.add_argument("--output", type=int, nargs=2, default=[8, 256], help="least and most tokens, mixed workload")
    parser.add_argument("--loads", type=float, nargs="*", default=[1, 2, 3, 4, 6], help="requests/s of the open loop")
    parser.add_argument("--load-s", type=float, default=20.0, help="how long each load lasts")
    parser.add_argument("--quality", type=int, default=512, metavar="TOKENS", help="held against fp32; 0: none")
    parser.add_argument("--quiet-s", type=float, default=60.0, help="a turn waits so long for others to be quiet")
    parser.add_argument("--tries", type=int, default=3, help="a turn that others disturbed is played again")
    parser.add_argument("--plot", type=Path, default=Path("build/bench-engine.svg"))
    parser.add_argument("--goal", choices=list(GOALS), help="measure this goal alone")
    parser.add_argument("--markdown", action="store_true", help="tables to paste into a document")
    return parser.parse_args()


if __name__ == "__main__":
    main()
