"""``python -m benchmarks.rollouts``: judge many simulated rollouts and print a table."""

import argparse
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rollouts.traffic import WHAT, CandidateFault, Traffic, share_of
from headrace.features.rollouts.bounds import Bounds
from headrace.features.rollouts.evidence import WINDOW_S, Evidence
from headrace.features.rollouts.evidence_plot import evidence_svg
from headrace.features.rollouts.judge import Verdict, judge
from headrace.features.rollouts.matched_pairs import PairedJobs, pair_up


@dataclass(frozen=True, slots=True)
class Ending:
    """How a rollout ended: the checks that found the candidate bad, and its jobs and windows until then."""

    bad: tuple[str, ...]
    num_jobs: int
    num_windows: int


def run(traffic: Traffic, most_jobs: int, *, most_windows: int = 600, looks: list[Verdict] | None = None) -> Ending:
    """Judge a rollout after each window until the candidate is bad, or has had ``most_jobs`` jobs.

    ``looks`` gets each verdict.
    """
    evidence, bounds = Evidence(), Bounds()
    windows = traffic.shadow_pairs() if traffic.fault is CandidateFault.WORSE else traffic.windows()
    number = 0
    for number, window in enumerate(windows, 1):
        if isinstance(window, list):
            evidence.num_candidate += len(window)
            evidence.add(PairedJobs(own=window), bounds)
        else:
            evidence.num_candidate += len(window[0])
            evidence.add(pair_up(*window), bounds)
        verdict = judge(evidence, bounds)
        if looks is not None:
            looks.append(verdict)
        if verdict.is_bad or evidence.num_candidate >= most_jobs or number >= most_windows:
            break
    bad = tuple(check.name for check in verdict.checks if check.decision == "bad")
    return Ending(bad, evidence.num_candidate, number)


def _row(fault: CandidateFault, sticky: str, endings: list[Ending]) -> str:
    bad = [one for one in endings if one.bad]
    checks = Counter(name for one in bad for name in one.bad)
    jobs, minutes = [one.num_jobs for one in bad], [one.num_windows * WINDOW_S / 60 for one in bad]
    figures = f"{statistics.median(jobs):.0f} | {max(jobs)} | {statistics.median(minutes):.0f}" if bad else "- | - | -"
    found = ", ".join(f"{name} {count}" for name, count in checks.most_common()) or "-"
    return f"| {WHAT[fault]} | {sticky} | {len(bad)} of {len(endings)} | {figures} | {found} |"


def _plot(traffic: Traffic, most_jobs: int) -> str:
    looks: list[Verdict] = []
    run(traffic, most_jobs, looks=looks)
    history = [
        {"at": row * WINDOW_S, "percent": share_of(row), "log_e": {check.name: check.log_e for check in one.checks}}
        for row, one in enumerate(looks, 1)
    ]
    title = f"{WHAT[traffic.fault]}: rolled back after {len(looks) * WINDOW_S / 60:.0f} minutes"
    return evidence_svg(title, {"checks": [check.as_json() for check in looks[-1].checks], "history": history})


def main() -> None:
    """Run the simulation of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--good", type=int, default=200, help="rollouts of a good version")
    parser.add_argument("--bad", type=int, default=20, help="rollouts of each bad version")
    parser.add_argument("--jobs", type=int, default=8000, help="the candidate's jobs in a rollout")
    parser.add_argument("--faults", nargs="*", type=CandidateFault, default=list(CandidateFault))
    parser.add_argument("--sticky", nargs="*", default=["user", "conversation", "job", "tenant"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="draw one rollout of the first fault, and do nothing else")
    asked = parser.parse_args()
    if asked.plot:
        asked.plot.write_text(_plot(Traffic(asked.seed, asked.faults[0], asked.sticky[0]), asked.jobs))
        return
    print("| candidate | sticky key | rolled back | jobs, median | jobs, most | minutes, median | by |")
    print("|---|---|---:|---:|---:|---:|---|")
    for fault in asked.faults:
        for sticky in asked.sticky if fault is not CandidateFault.WORSE else ["-"]:
            num = asked.good if fault is CandidateFault.NONE else asked.bad
            seeds = range(asked.seed, asked.seed + num)
            print(_row(fault, sticky, [run(Traffic(seed, fault, sticky), asked.jobs) for seed in seeds]), flush=True)


if __name__ == "__main__":
    main()
