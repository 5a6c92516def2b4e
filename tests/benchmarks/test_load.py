import json
from pathlib import Path

import pytest

from benchmarks import venvs
from benchmarks.load.__main__ import STREAMS, outcome
from benchmarks.load.aiperf import Stream, command, figures

REPORT = {
    "request_count": {"unit": "requests", "avg": 41.0},
    "error_request_count": {"unit": "requests", "avg": 3.0},
    "request_throughput": {"unit": "requests/sec", "avg": 0.6583},
    "request_latency": {"unit": "ms", "avg": 90.0, "p50": 81.118, "p95": 140.0, "p99": 150.0},
    "error_summary": [{"error_details": {"code": 429, "type": "Too Many Requests"}, "count": 3}],
}


def test_refused_requests_are_counted_by_their_status() -> None:
    found = figures(REPORT)
    assert (found["answered"], found["failed"], found["errors"]) == (41, 3, {"429 Too Many Requests": 3})
    assert (found["requests_per_s"], found["request_latency_p50_ms"]) == (0.66, 81.12)
    assert found["time_to_first_token_p50_ms"] is None


@pytest.mark.parametrize("content", [None, "{"])
def test_a_run_without_a_report_says_what_aiperf_said(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "aiperf.log").write_text("no route to the server\n")
    if content is not None:
        (tmp_path / "profile_export_aiperf.json").write_text(content)
    assert outcome(tmp_path)["no_report"] == "no route to the server\n"


def test_only_tasks_with_tokens_are_streamed() -> None:
    def arguments(stream: Stream) -> list[str]:
        return command(stream, "bursty", url="u", key="k", tokenizer=Path("t"), folder=Path("f"), seconds=9, seed=1)

    assert {stream.task: "--streaming" in arguments(stream) for stream in STREAMS} == {
        "chat": True,
        "completions": True,
        "embeddings": False,
    }
    assert len({stream.tenant for stream in STREAMS}) == 2


def test_the_report_names_the_version_of_aiperf(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.dumps([{"name": name, "version": "0.13.0"} for name in ("aiperf", "uvicorn", "pillow")])
    monkeypatch.setattr(venvs, "run", lambda argv, say: listed)
    assert venvs.versions("aiperf") == {"aiperf": "0.13.0", "uvicorn": "0.13.0"}
