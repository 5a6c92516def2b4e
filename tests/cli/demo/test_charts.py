"""The demo's pictures and its webhook receiver."""

import io
from datetime import UTC, datetime

import httpx2
import orjson
from rich.console import Console
from standardwebhooks import Webhook

from cli.demo import charts, sampler
from cli.demo.charts import Span
from cli.demo.receiver import running_receiver
from store.tenants.webhook_secrets import new_secret


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


def test_the_receiver_counts_good_signatures_and_refuses_others() -> None:
    secret, body = new_secret(), orjson.dumps({"type": "job.succeeded", "data": {"id": "job_1"}})
    now = datetime.now(UTC)

    def signed(with_secret: str) -> dict[str, str]:
        signature = Webhook(with_secret).sign("evt_1", now, body.decode())
        return {"webhook-id": "evt_1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}

    with running_receiver() as receiver, httpx2.Client(trust_env=False) as http:
        assert http.post(receiver.url, content=body, headers=signed(secret)).status_code == 401
        receiver.trust(secret)
        assert http.post(receiver.url, content=body, headers=signed(new_secret())).status_code == 401
        assert receiver.wait_for({"job_1"}, 0) == set()
        assert http.post(receiver.url, content=body, headers=signed(secret)).status_code == 204
        assert receiver.wait_for({"job_1"}, 5) == {"job_1"}
        assert receiver.num_refused == 2
