"""``python -m tests.failover``: fail over each part of a Headrace without a single point, under load, and check.

Three APIs, six workers with the fake model, two dispatchers, Redis with a replica and three Sentinels, Postgres with a
synchronous standby. A seed decides the order and the targets. Prints the report as JSON; exits 1 if a promise broke.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

from rich.console import Console

from tests.chaos.checker import Findings, check
from tests.chaos.report import Json, save, show
from tests.chaos.soak import Run, running
from tests.failover.cluster import SHAPE, FailoverCluster
from tests.failover.faults import FailoverFaults, led_from, plan
from tests.failover.figures import of_faults, without_leader

console = Console(stderr=True)
CALM_S = 8.0


def main() -> int:
    """Run it; return the exit code."""
    options = _arguments()
    if not options.private_network:
        _enter_private_network()
    report, findings = failover(options.seed, options.rate, options.again)
    report["private_network"] = options.private_network
    show(report, findings, console)
    save(report, "failover")
    print(json.dumps(report))  # noqa: T201 - the report line
    return 1 if findings.broken else 0


def failover(seed: int, rate: float, num_again: int) -> tuple[Json, Findings]:
    """Run the plan of the seed and return the report with the violations."""
    with running("failover", seed=seed, say=say, shape=SHAPE, kind=FailoverCluster) as run:
        cluster = run.cluster
        assert isinstance(cluster, FailoverCluster)
        run.let_in(rate)
        run.wait(CALM_S)
        cluster.journal.write("phase", name="calm")
        run.wait(CALM_S)
        cluster.journal.write("phase", name="over")
        for names in plan(seed, num_again):
            _carry(run, FailoverFaults(cluster, seed), names)
        history = run.finish()
        findings = check(history, needs_stale=False, forbids_500=True)
        leading = [at for one in cluster.of_kind("dispatcher") for at in led_from(cluster, one.name)]
        figures = {"faults": of_faults(history), "without_leader_s": without_leader(history, leading)}
        report = run.report(findings, run="failover", **figures)
        save(report, "failover")  # at once: ending the cluster takes a while
        return report, findings


def _carry(run: Run, faults: FailoverFaults, names: tuple[str, ...]) -> None:
    """Have these faults at the same time, and return when all are over."""
    name = " + ".join(names)
    run.say(name)
    journal = run.cluster.journal
    journal.write("phase", name=name)
    for one in names:
        # The checker's rule for innocent jobs knows the outages of Postgres by the name.
        journal.write("strike", fault=one, target="all", for_s=0)
    under_way = [faults.carry(one) for one in names]
    while under_way:
        under_way = [one for one in under_way if next(one, "over") != "over"]
        run.turn()
    for one in names:
        journal.write("strike_over", fault=one)
    journal.write("phase", name="over")


def say(sentence: str) -> None:
    """Print progress."""
    console.print(sentence, style="dim", markup=False, highlight=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.failover", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=6.0, help="jobs submitted a second")
    parser.add_argument("--again", type=int, default=3, help="pairs of faults at the same time, after each part alone")
    # Internal: this program starts itself with it.
    parser.add_argument("--private-network", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _enter_private_network() -> None:
    """Restart in a network namespace of its own, so that no address is another's; continue without if not allowed."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    if os.geteuid() != 0 or unshare is None or ip is None:
        return
    if subprocess.run([unshare, "-n", ip, "link", "set", "lo", "up"], check=False, capture_output=True).returncode == 0:
        again = [sys.executable, "-m", "tests.failover", "--private-network", *sys.argv[1:]]
        os.execv(unshare, [unshare, "-n", "sh", "-c", f'{ip} link set lo up && exec "$@"', "sh", *again])


if __name__ == "__main__":
    sys.exit(main())
