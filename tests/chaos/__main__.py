"""``python -m tests.chaos``: inject random faults from a seed into a running Headrace, then check every promise.

Prints a table and, as the last line, the report as JSON; exits 1 if a promise was broken or nothing was killed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

from rich.console import Console

from tests.chaos.cluster import Shape
from tests.chaos.promises import PROMISES, Ask
from tests.chaos.report import save, show
from tests.chaos.soak import soak
from tests.chaos.upgrade import upgrade

console = Console(stderr=True)


def main() -> int:
    """Run the requested part; return the exit code."""
    options = _arguments()
    if not options.private_mounts:
        _enter_private_namespace()
    shape = Shape(has_private_mounts=options.private_mounts)
    if options.upgrade_from:
        report, findings = upgrade(
            commit=options.upgrade_from, seed=options.seed, rate=options.rate, say=say, shape=shape
        )
    elif options.promise:
        ask = Ask(seed=options.seed, say=say, shape=shape, scale=options.scale)
        report, findings = PROMISES[options.promise](ask)
    else:
        duration_s = options.minutes * 60
        report, findings = soak(seed=options.seed, duration_s=duration_s, rate=options.rate, say=say, shape=shape)
    show(report, findings, console)
    save(report, "upgrade" if options.upgrade_from else options.promise or options.save)
    print(json.dumps(report))  # noqa: T201 - the report line
    return 1 if findings.broken else 0


def say(sentence: str) -> None:
    """Print progress."""
    console.print(sentence, style="dim", markup=False, highlight=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1.9, help="how long things are broken; ends follow")
    parser.add_argument("--rate", type=float, default=12.0, help="jobs submitted a second")
    parser.add_argument("--promise", choices=sorted(PROMISES), help="measure one row of the reliability table instead")
    parser.add_argument("--upgrade-from", metavar="COMMIT", help="upgrade that commit to this tree under load instead")
    parser.add_argument("--scale", type=float, default=1.0, help="shorten a row, for a first look")
    parser.add_argument("--save", default="chaos", help="name of the file under build/reliability")
    # Internal: this program starts itself with it.
    parser.add_argument("--private-mounts", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _enter_private_namespace() -> None:
    """Restart in a private mount namespace, so that Postgres's disk can be small; continue without if not allowed."""
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        return
    if subprocess.run([unshare, "-m", "true"], check=False, capture_output=True).returncode == 0:
        os.execv(unshare, [unshare, "-m", sys.executable, "-m", "tests.chaos", "--private-mounts", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
