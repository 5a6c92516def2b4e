"""The demo's pictures, its verdict, and its webhook receiver."""

import io
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx2
import orjson
import pytest
from rich.console import Console
from standardwebhooks import Webhook

from headrace.cli.demo import charts, demo, sampler
from headrace.cli.demo.charts import Span
from headrace.cli.demo.receiver import running_receiver
from headrace.store.errors import Unavailable
from headrace.store.tenants.signing_secrets import new_secret
from tests.refusals import Naming


def drawn(renderable: object) -> list[str]:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_bars_lie_on_one_axis_in_proportion() -> None:
    first = Span("short", "1 tokens", queued_s=0, started_s=2, first_token_s=3, ended_s=4)
    last = Span("x" * 50, "9 tokens", queued_s=1, started_s=2, first_token_s=4, ended_s=8)
    _header, short, long, footer = drawn(charts.timeline([first, last]))
    assert [short.count(mark) for mark in "░▒█"] == [12, 6, 6]
    assert [long.count(mark) for mark in "░▒█"] == [6, 12, 24]
    assert "3.00 s" in short
    assert "x" * 29 + "…" in long
    assert "8.0 s" in footer


def test_a_bar_without_a_length_still_shows() -> None:
    span = Span("at once", "", queued_s=0, started_s=0, first_token_s=0, ended_s=0)
    assert any("█" in line for line in drawn(charts.timeline([span, Span("b", "", 0, 0, 0, 5)])))
    assert drawn(charts.timeline([span]))


def test_occupancy_is_a_row_of_blocks_however_many_samples() -> None:
    assert drawn(charts.occupancy([0, 4, 8]))[0].endswith(" ▄█  (top: 8)")
    (line,) = drawn(charts.occupancy([3] * 1000))
    assert line.count("█") == 48


def test_gauges_are_read_by_their_short_names() -> None:
    page = "# HELP headrace_engine_running x\nheadrace_engine_running 3.0\nother 4\nheadrace_engine_mean_batch 2.5\n"
    occupancy = sampler.Occupancy()
    occupancy.add(sampler.read_gauges(page))
    assert (occupancy.running, occupancy.mean) == ([3], 2.5)


JOB: dict[str, Any] = {
    "id": "job_1",
    "status": "succeeded",
    "metadata": {"demo": "Why?"},
    "usage": {"output_tokens": 7, "first_token_ms": 1500.0, "input_tokens": 3, "compute_ms": None},
    "error": None,
}
EVENTS = [{"kind": "queued", "at": 11.0}, {"kind": "started", "at": 12.0}, {"kind": "succeeded", "at": 15.0}]


def test_a_job_is_a_bar_from_its_acceptance_to_its_end() -> None:
    job: Any = JOB
    assert demo.span_of(job, EVENTS, 10.0) == Span("Why?", "7 tokens", 1.0, 2.0, 2.5, 5.0)
    unstarted: Any = JOB | {"usage": None}
    assert demo.span_of(unstarted, EVENTS[::2], 10.0) == Span("Why?", "0 tokens", 1.0, 5.0, 5.0, 5.0)


class Received:
    """Stands for the receiver of webhooks."""

    def __init__(self, *job_ids: str, num_refused: int = 0) -> None:
        self.num_refused, self._ids = num_refused, set(job_ids)

    def wait_for(self, expected: set[str], timeout_s: float) -> set[str]:
        return self._ids & expected if timeout_s else set()


@pytest.mark.parametrize(
    ("jobs", "receiver", "said"),
    [
        (
            [JOB, JOB | {"status": "failed", "error": {"code": "poison", "message": "died"}}],
            Received("job_1"),
            ("1 of 2", "job_1", "poison: died"),
        ),
        ([JOB], Received(), ("webhooks: 1 ", " 0 ")),
        ([JOB], Received("job_1", num_refused=2), ("webhooks: 0 ", " 2 ")),
    ],
)
def test_a_demo_fails_if_a_part_of_it_did_not_work(jobs: Any, receiver: Any, said: tuple[str, ...]) -> None:
    with pytest.raises(Unavailable) as failed:
        demo.check(jobs, receiver)
    assert failed.value.message == Naming(*said)


def test_a_demo_has_its_endpoint_while_it_runs() -> None:
    called: list[Any] = []
    client: Any = SimpleNamespace(
        create_webhook_endpoint=lambda *given: called.append(given) or {"id": "we_1", "secret": "whsec_x"},
        delete_webhook_endpoint=called.append,
    )
    receiver: Any = SimpleNamespace(url="http://r", trust=called.append)
    with suppress(Unavailable), demo.registered(client, receiver):
        assert called == [("http://r", ["job.succeeded", "job.failed"]), "whsec_x"]
        raise Unavailable("the burst failed")
    assert called[2:] == ["we_1"]


def test_the_receiver_counts_good_signatures_and_refuses_others() -> None:
    secret, body = new_secret(), orjson.dumps({"type": "job.succeeded", "data": {"id": "job_1"}})
    now = datetime.now(UTC)

    def signed(with_secret: str) -> dict[str, str]:
        signature = Webhook(with_secret).sign("evt_1", now, body.decode())
        return {"webhook-id": "evt_1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}

    with running_receiver() as receiver, httpx2.Client(trust_env=False, timeout=60) as http:
        assert http.post(receiver.url, content=body, headers=signed(secret)).status_code == 401
        receiver.trust(secret)
        assert http.post(receiver.url, content=body, headers=signed(new_secret())).status_code == 401
        assert receiver.wait_for({"job_1"}, 0) == set()
        assert http.post(receiver.url, content=body, headers=signed(secret)).status_code == 204
        assert receiver.wait_for({"job_1"}, 60) == {"job_1"}
        assert receiver.num_refused == 2
