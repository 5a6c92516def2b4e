"""The events of a response, streamed and resumed, asked by the official client."""

from typing import Any

import httpx2
import openai as sdk
import pytest
import redis
from openai import OpenAI

from headrace.store.db.database import Database
from tests.features.responses.response_calls import (
    ENDING,
    HELLO,
    ORDER,
    PIECES,
    TEXT,
    job_of,
    kinds,
    only_job,
    rest,
    text_of,
)
from tests.processes import wait_for
from tests.producer_api.calling import parse, state_of
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer


class TestStreams:
    def test_the_order_of_events(self, openai: OpenAI, api: httpx2.Client, worker: ScriptedWorker) -> None:
        with worker.serve(lambda _: PIECES):
            events = list(openai.responses.create(**HELLO, stream=True))
            with openai.responses.stream(**HELLO) as stream:
                told = list(stream)
                final = stream.get_final_response()
            raw = parse(api.post("/v1/responses", json=HELLO | {"stream": True}).content)
        assert kinds(events) == kinds(told) == [*ORDER, *ENDING]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [int(event.id) for event in raw] == list(range(len(raw)))
        assert all(event.name == event.data["type"] for event in raw)
        assert text_of(events) == final.output_text == events[-1].response.output_text == TEXT
        assert openai.responses.retrieve(events[0].response.id) == events[-1].response

    def test_text_is_streamed_as_it_comes(
        self, openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str
    ) -> None:
        events = iter(openai.responses.create(**HELLO, stream=True))
        assert [next(events).type for _ in range(2)] == ["response.created", "response.in_progress"]
        attempt = worker.claim(only_job(db, tenant).id)
        received: list[Any] = []
        for piece in PIECES:
            worker.say(attempt, piece)
            said = "".join(attempt.said)
            while len(text_of(received).encode()) < len(said.encode()) - 2:
                received.append(next(events))
        worker.succeed(attempt)
        assert text_of([*received, *events]) == TEXT

    def test_every_number_leads_to_the_same_from_any_server(
        self, both: list[OpenAI], worker: ScriptedWorker, redis_client: redis.Redis
    ) -> None:
        here, there = both
        stream = here.responses.create(**HELLO, background=True, stream=True)
        events = iter(stream)
        received = [next(events), next(events)]
        assert [event.type for event in received] == ["response.created", "response.queued"]
        response_id = received[0].response.id
        attempt = worker.claim(job_of(response_id))
        worker.say(attempt, *PIECES[:3])
        while text_of(received) != "The water 流れる":
            received.append(next(events))
        # While it runs, from Redis.
        for event in received:
            late = iter(there.responses.retrieve(response_id, stream=True, starting_after=event.sequence_number))
            for expected in received[event.sequence_number + 1 :]:
                assert next(late) == expected
        worker.say(attempt, *PIECES[3:])
        worker.succeed(attempt)
        received += events
        assert kinds(received) == ["created", "queued", *ORDER[1:], *ENDING]
        # Afterwards, from Postgres.
        redis_client.flushall()
        for number in [None, *range(len(received))]:
            late = rest(there if number is None or number % 2 else here, response_id, number)
            assert late == received[0 if number is None else number + 1 :]
        with there.responses.stream(response_id=response_id, starting_after=5) as replay:
            assert text_of(list(replay)) == text_of(received[6:])

    @pytest.mark.parametrize("is_wiped", [False, True], ids=["redis remembers", "redis was wiped"])
    def test_a_lost_worker_goes_unnoticed(
        self, both: list[OpenAI], worker: ScriptedWorker, redis_client: redis.Redis, is_wiped: bool
    ) -> None:
        here, there = both
        response = here.responses.create(**HELLO, background=True)
        events = iter(here.responses.retrieve(response.id, stream=True))
        first = worker.claim(job_of(response.id))
        worker.say(first, *PIECES[:4])
        received: list[Any] = []
        while text_of(received) != "The water 流れる turns th":
            received.append(next(events))
        if is_wiped:
            redis_client.flushall()
        worker.hand_back(first, charge=True)
        # The next attempt kept little or nothing of the sent text, repeats it and splits it at other places.
        second = worker.claim(first.claim.job_id) if is_wiped else worker.go_on(first, 1)
        already = "" if is_wiped else PIECES[0]
        worker.say(second, *TEXT.removeprefix(already))
        for event in received:
            with there.responses.retrieve(response.id, stream=True, starting_after=event.sequence_number) as late:
                for expected in received[event.sequence_number + 1 :]:
                    assert next(late) == expected
        worker.succeed(second)
        received += events
        assert text_of(received) == TEXT
        assert [event.sequence_number for event in received] == list(range(len(received)))
        for number in range(len(received)):
            assert rest(there, response.id, number) == received[number + 1 :]

    def test_another_text_is_never_glued(self, openai: OpenAI, worker: ScriptedWorker) -> None:
        response = openai.responses.create(**HELLO, background=True)
        events = iter(openai.responses.retrieve(response.id, stream=True))
        first = worker.claim(job_of(response.id))
        worker.say(first, "water")
        received = [next(events) for _ in range(6)]
        assert text_of(received) == "wat"
        worker.hand_back(first, charge=True)
        second = worker.claim(first.claim.job_id)
        worker.say(second, "fire", "wood")
        with pytest.raises(sdk.APIError, match="different text"):
            list(events)
        worker.succeed(second)
        assert text_of(rest(openai, response.id, None)) == "firewood"

    def test_leaving_cancels_what_nobody_else_waits_for(
        self, api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str, server: ApiServer
    ) -> None:
        for body, is_cancelled in (({"background": True}, False), ({}, True)):
            with api.stream("POST", "/v1/responses", json=HELLO | {"stream": True} | body) as response:
                next(response.iter_raw())
                job = only_job(db, tenant)
            wait_for(lambda: not server.runtime.metrics.streams_open.collect()[0].samples[0].value)
            if is_cancelled:
                wait_for(lambda job=job: state_of(db, job.id) == "cancelled")
            assert (state_of(db, job.id) == "cancelled") is is_cancelled

    def test_a_draining_server_ends_no_stream_cleanly(
        self, api: httpx2.Client, server: ApiServer, worker: ScriptedWorker, db: Database, tenant: str
    ) -> None:
        with api.stream("POST", "/v1/responses", json=HELLO | {"stream": True, "background": True}) as response:
            chunks = response.iter_raw()
            next(chunks)
            server.drain()
            with pytest.raises(httpx2.RemoteProtocolError):
                list(chunks)
        assert state_of(db, only_job(db, tenant).id) == "queued"
