"""A response's events are a function of its text: however it was computed, cut and read."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.features.responses.response_answer import response_object
from headrace.features.responses.response_events import ResponseEventBuilder
from headrace.features.responses.response_output import StableChunker
from headrace.features.responses.stored_responses import StoredResponse
from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import JobState
from tests.producer_api.answered_jobs import ended

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PLAIN = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
DONE = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


def pieces_of(text: str, places: list[int]) -> list[str]:
    """Cut the text at these places."""
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def told(job: Job, pieces: list[str], *, is_background: bool = False) -> list[dict[str, Any]]:
    row = StoredResponse(job.id, None, is_stored=True, is_background=is_background, request={})
    narrator = ResponseEventBuilder(job, row)
    events = list(narrator.opening())
    for piece in pieces:
        events += narrator.add_text(piece)
    return [*events, *narrator.end(job, is_text_complete=True)]


@given(TEXTS, st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)))
def test_a_text_is_cut_at_the_same_places_however_it_comes(text: str, one: list[int], other: list[int]) -> None:
    cutters = [StableChunker(), StableChunker()]
    cuts = [
        [cut for piece in pieces_of(text, places) for cut in cutter.add(piece)] + list(cutter.rest())
        for cutter, places in zip(cutters, (one, other), strict=True)
    ]
    assert cuts[0] == cuts[1]
    assert "".join(cuts[0]) == text
    assert all(len(cut[:-1].encode()) < 3 <= len(cut.encode()) for cut in cuts[0][:-1])


@given(TEXTS, st.lists(st.integers(0, 40)))
def test_the_events_of_a_text_do_not_depend_on_its_pieces(text: str, places: list[int]) -> None:
    events = told(ended(text), pieces_of(text, places))
    assert events == told(ended(text), [text])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    num_deltas = kinds.count("response.output_text.delta")
    assert kinds == [*PLAIN, *["response.output_text.delta"] * num_deltas, *DONE, "response.completed"]
    assert "".join(event.get("delta", "") for event in events) == text
    (item,) = events[-1]["response"]["output"]
    assert (item["content"][0]["text"], item) == (text, events[-2]["item"])


def test_a_response_in_the_background_waits_first() -> None:
    kinds = [event["type"] for event in told(ended("x"), ["x"], is_background=True)]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    never = ended("", JobState.CANCELLED, output=None, started_at=None, epoch=0, usage=None)
    kinds = [event["type"] for event in told(never, [], is_background=True)]
    assert kinds == ["response.created", "response.queued", "response.cancelled"]


def test_ends_other_than_an_answer() -> None:
    row = StoredResponse("job_1", None, is_stored=True, is_background=False, request={})
    error = {"code": "out_of_memory", "message": "no memory left"}
    cases = {
        "incomplete": ended("half", finish_reason="length"),
        "cancelled": ended("half", JobState.CANCELLED, "cancelled"),
        "failed": ended("half", JobState.EXPIRED, "deadline", error=error),
    }
    for status, job in cases.items():
        events = told(job, ["half"])
        assert [event["type"] for event in events][-4:] == [*DONE, f"response.{status}"]
        assert events[-2]["item"]["status"] == "incomplete"
        shown = response_object(job, row)
        assert (shown["status"], shown["output"][0]["status"]) == (status, "incomplete")
        assert shown["completed_at"] is None
    assert response_object(cases["incomplete"], row)["incomplete_details"] == {"reason": "max_output_tokens"}
    failed = ended("", JobState.FAILED, output=None, error=error)
    assert [event["type"] for event in told(failed, ["half"])][-2:] == ["response.output_text.delta", "response.failed"]
    assert response_object(failed, row)["error"] == {"code": "server_error", "message": "no memory left"}
    assert response_object(cases["failed"], row)["job"]["status"] == "expired"


@given(
    st.lists(st.sampled_from(['{"name": "f", "arguments": ', "{}", '{"a": 1}', "}", "\n", "So.", "{"]), max_size=8),
    TEXTS,
)
def test_the_events_of_calls_do_not_depend_on_the_pieces_either(fragments: list[str], places: str) -> None:
    text = "".join(fragments)
    asked = {"messages": [{"role": "user", "content": "x"}], "tools": [{"function": {"name": "f"}}]}
    job = ended(text, payload={"input": asked, "sampling": {}, "tool_style": "json"})
    events = told(job, pieces_of(text, [ord(place) % 60 for place in places]))
    assert events == told(job, [text])
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]


def test_a_search_has_ended_before_the_first_text_whatever_a_reader_saw_first() -> None:
    """A reader sees the end of the search or the first text first; both get the same numbers."""
    turn = {"role": "user", "content": "x"}
    step = {"name": "answer", "retrieval": {"vector_store_ids": ["vs_1"]}, "input": {"messages": [turn]}}
    job = ended("Oats.", task="flow", payload={"steps": [step]})
    row = StoredResponse(job.id, None, is_stored=True, is_background=False, request={})
    early = ResponseEventBuilder(job, row)
    events = [*early.opening(), *early.searched(), *early.add_text("Oats."), *early.end(job, is_text_complete=True)]
    assert events == told(job, ["Oats."])
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds.index("file_search_call.completed") < kinds.index("content_part.added")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
