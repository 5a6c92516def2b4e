"""``make bench-queue``: how fast a queue accepts jobs, completes them and reports it, and the cost of a job.

Contestants take turns: in every round each is started, warmed up, measured and stopped, so that what the machine does
meanwhile hits all alike; the table has the medians of the rounds. Prints a table and, as its last line, JSON. Exits 1
if Headrace missed a goal or a job that was accepted did not succeed.
"""

import argparse
import json
import sys
from contextlib import ExitStack

from rich.console import Console

from benchmarks.queue.contestants import CONTESTANTS, Contestant
from benchmarks.queue.report import draw, goals, summary
from benchmarks.queue.services import running_services
from benchmarks.queue.turns import Options, open_loop, play

_TABLE_CHARS = 150
console = Console(stderr=True, log_path=False)
if not console.is_terminal:
    console.width = _TABLE_CHARS


def main() -> None:
    options, wanted, markdown = _arguments()
    turns, refusals = [], {}
    with ExitStack() as cleanup:
        services = cleanup.enter_context(running_services())
        for number in range(options.rounds):
            for contestant in wanted:
                if contestant.name in refusals:
                    continue
                console.log(f"round {number + 1} of {options.rounds}: {contestant.what}")
                turn = play(contestant, services, options, console.log)
                if isinstance(turn, str):
                    console.log(f"  cannot run: {turn}")
                    refusals[contestant.name] = turn
                else:
                    console.log(f"  {turn.measured.jobs_per_s} jobs/s, submit p99 {turn.measured.submit_p99_ms} ms")
                    turns.append(turn)
        steady = open_loop(services, options, console.log) if options.steady_s else None
    found = summary(turns, refusals, steady, options)
    draw(console, found, wanted, markdown=markdown)
    missed = goals(found)
    for sentence in missed:
        console.print(f"[red]missed:[/] {sentence}")
    print(json.dumps(found))
    sys.exit(1 if missed else 0)


def _arguments() -> tuple[Options, list[Contestant], bool]:
    names = [contestant.name for contestant in CONTESTANTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000, help="jobs a turn")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--poll-ms", type=float, default=50.0, help="pause before each poll of a job")
    parser.add_argument("--max-s", type=float, default=30.0, help="a turn stops submitting after this long")
    parser.add_argument("--warm-up", type=int, default=300, help="jobs before each turn that are not counted")
    parser.add_argument("--only", nargs="+", choices=names, help="these contestants alone")
    parser.add_argument("--steady-s", type=float, default=20.0, help="open loop for Headrace; 0 leaves it out")
    parser.add_argument("--steady-rate", type=float, default=300.0, help="jobs a second of the open loop")
    parser.add_argument("--statements", action="store_true", help="log the statements that took Postgres most time")
    parser.add_argument("--markdown", action="store_true", help="tables to paste into a document")
    given = vars(parser.parse_args())
    only, markdown = given.pop("only"), given.pop("markdown")
    wanted = [contestant for contestant in CONTESTANTS if only is None or contestant.name in only]
    return Options(**given), wanted, markdown


if __name__ == "__main__":
    main()
