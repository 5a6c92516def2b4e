"""The traces of a batch: its request, and one of each line with a link to that request."""

from collections.abc import Iterator

import httpx2
import pytest
from openai import InternalServerError, OpenAI

from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from tests.features.batches.test_batch_routes import line, make
from tests.otlp import Collector, ReceivedSpan
from tests.processes import wait_for
from tests.producer_api.serving import serving

TRACE_ID, CALLER_ID = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def test_each_line_is_a_trace_with_a_link_to_the_request(
    settings: Settings, model: ModelVersion, key: str, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LookupError

    with (
        serving(settings, tracing=collector.tracing("headrace-api")) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60) as openai,
        httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as api,
    ):
        for flags in ("00", "01"):
            headers = {"traceparent": f"00-{TRACE_ID}-{CALLER_ID}-{flags}"}
            batch = make(openai.with_options(default_headers=headers), [line("a"), line("b")])
        wait_for(lambda: len(accepts(collector)) == 2, lambda: f"the sampled lines came: {collector.spans()}")
        wait_for(lambda: len(api.get("/v1/jobs").json()["data"]) == 4, "the unsampled lines are jobs too")
        monkeypatch.setattr("headrace.features.batches.batches.create", fail)
        with pytest.raises(InternalServerError):
            make(openai, [line("a")])
        wait_for(lambda: len(requests(collector)) == 2, lambda: f"both requests came: {collector.spans()}")
    assert {span.attributes["headrace.batch.id"] for span in accepts(collector)} == {batch.id}
    request, failed = requests(collector)
    assert (request.trace_id, request.parent_id, request.error) == (TRACE_ID, CALLER_ID, None)
    assert (failed.attributes["http.response.status_code"], failed.error) == (500, "500")
    assert [span.links for span in accepts(collector)] == [(request.span_id,)] * 2
    assert len({TRACE_ID, *(span.trace_id for span in accepts(collector))}) == 3
    assert [span.parent_id for span in accepts(collector)] == ["", ""]


def requests(collector: Collector) -> list[ReceivedSpan]:
    return [span for span in collector.spans() if span.name == "POST /v1/batches"]


def accepts(collector: Collector) -> list[ReceivedSpan]:
    return [span for span in collector.spans() if span.name == "accept"]
