"""AIPerf: its command line, and the figures of its report. Its environment is its own (``benchmarks.venvs``)."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARRIVALS: Mapping[str, tuple[str, ...]] = {
    "poisson": ("--arrival-pattern", "poisson"),
    # A gamma distribution of this smoothness: its gaps have 2.2 times the spread of Poisson's, so requests come in
    # clusters.
    "bursty": ("--arrival-pattern", "gamma", "--arrival-smoothness", "0.2"),
}

TIMES = ("time_to_first_token", "inter_token_latency", "request_latency")


class NoReport(Exception):
    """AIPerf ended without a report; the message is the end of its output."""


@dataclass(frozen=True)
class Stream:
    """Requests of one tenant for one task. ``rate``: a second, on average; tokens are means."""

    tenant: str
    task: str
    model: str
    rate: float
    input_tokens: int
    output_tokens: int | None = None

    @property
    def name(self) -> str:
        """The tenant and the task."""
        return f"{self.tenant} {self.task}"


def command(
    stream: Stream, arrivals: str, *, url: str, key: str, tokenizer: Path, folder: Path, seconds: float, seed: int
) -> list[str]:
    """Return AIPerf's arguments. Its own processes are few, because they share the processors with the stack."""
    arguments = ["profile", "--model", stream.model, "--endpoint-type", stream.task, "--url", url, "--api-key", key]
    arguments += ["--request-rate", str(stream.rate), *ARRIVALS[arrivals], "--benchmark-duration", str(seconds)]
    arguments += ["--benchmark-grace-period", "120", "--random-seed", str(seed), "--tokenizer", str(tokenizer)]
    arguments += ["--synthetic-input-tokens-mean", str(stream.input_tokens)]
    arguments += ["--synthetic-input-tokens-stddev", str(stream.input_tokens // 3)]
    arguments += ["--num-conversations", str(max(20, round(2 * stream.rate * seconds)))]
    if stream.output_tokens is not None:
        arguments += ["--streaming", "--output-tokens-mean", str(stream.output_tokens)]
    arguments += ["--workers-max", "1", "--record-processors", "1", "--no-server-metrics", "--no-gpu-telemetry"]
    return [*arguments, "--ui", "none", "--output-artifact-dir", str(folder)]


def start(program: Path, arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start AIPerf; its output is in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "aiperf.log").open("wb") as log:
        return subprocess.Popen([program, *arguments], stdout=log, stderr=subprocess.STDOUT)


def read(folder: Path) -> dict[str, Any]:
    """Return the figures of a run: requests by outcome, and times in milliseconds. Raises NoReport."""
    try:
        report = json.loads((folder / "profile_export_aiperf.json").read_text())
    except (OSError, ValueError) as error:
        log = folder / "aiperf.log"
        raise NoReport(log.read_text(errors="replace")[-1500:] if log.exists() else str(error)) from error
    return figures(report)


def figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of AIPerf's report. An absent metric, such as tokens of embeddings, is None."""

    def of(name: str, statistic: str) -> float | None:
        found = (report.get(name) or {}).get(statistic)
        return None if found is None else round(float(found), 2)

    times = {f"{name}_{at}_ms": of(name, at) for name in TIMES for at in ("p50", "p95", "p99")}
    errors = {
        f"{one['error_details'].get('code')} {one['error_details'].get('type')}": one["count"]
        for one in report.get("error_summary") or []
    }
    return {
        "answered": int(of("request_count", "avg") or 0),
        "failed": int(of("error_request_count", "avg") or 0),
        "errors": errors,
        "requests_per_s": of("request_throughput", "avg"),
        "output_tokens_per_s": of("output_token_throughput", "avg"),
        **times,
    }
