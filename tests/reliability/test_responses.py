"""A response that is being read while its worker is killed, by the official client, from real processes."""

import signal
from contextlib import closing

import pytest
from openai import OpenAI

from tests.reliability.rig import Stack

ASKED = {"model": "tiny", "input": "What does the water do all day?", "max_output_tokens": 200, "temperature": 0}


# test_matrix has the stream of a job in every run.
@pytest.mark.full
def test_a_killed_worker_is_not_seen_in_a_stream(stack: Stack) -> None:
    stack.register("tiny")
    api, client = stack.api()
    worker = stack.worker("tiny", fake_step_ms=40)
    for process in (api, worker, stack.dispatcher()):
        process.wait_ready()
    with closing(client), OpenAI(base_url=f"{client.url}/v1", api_key=stack.key, max_retries=0, timeout=90) as openai:
        undisturbed = openai.responses.create(**ASKED)
        assert undisturbed.usage is not None
        assert undisturbed.usage.output_tokens > 60

        stream = openai.responses.create(**ASKED, background=True, stream=True)
        begun = []
        for event in stream:
            begun.append(event)
            if len(begun) == 20:
                worker.signal(signal.SIGKILL)
            if len(begun) == 30:
                break
        stream.close()
        response = begun[0].response
        rest = list(openai.responses.retrieve(response.id, stream=True, starting_after=begun[-1].sequence_number))

        assert worker.exits == [-signal.SIGKILL]
        assert [row.attempt for row in stack.query("SELECT attempt FROM jobs ORDER BY created_at")] == [1, 2]
        events = begun + rest
        assert [event.sequence_number for event in events] == list(range(len(events)))
        told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert told == undisturbed.output_text == openai.responses.retrieve(response.id).output_text
